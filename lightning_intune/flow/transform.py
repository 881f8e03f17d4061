"""From Arrow rows to a model's batch: the last map of the data flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lightning_intune.config import Schema, SparseFeature
from lightning_intune.dedup.jagged import Batch, KeyedJagged
from lightning_intune.flow.features import Floats, Lengths, Rows, SparseEncoder, fill_floats, flat_values
from lightning_intune.flow.ngrams import NgramEncoder, ngram_counts
from lightning_intune.flow.truncate import truncated

if TYPE_CHECKING:
    from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor


Encode = Callable[[pa.Array], Rows]


@final
class ToJagged:
    """A function from a table of B rows to the sparse part of a batch, one key per feature, in their order."""

    def __init__(self, features: Sequence[SparseFeature]) -> None:
        self._features = tuple(features)
        self._encoders = [SparseEncoder(feature) for feature in self._features]
        self._ngrams = [NgramEncoder(feature) for feature in self._features]

    def __call__(self, table: pa.Table) -> KeyedJagged:
        """The features of these rows."""
        features, num_rows = self._features, table.num_rows
        lengths: Lengths = np.ones(len(features) * num_rows, np.int32)
        parts: list[tuple[Encode, pa.Array, int]] = []  # and how many values come of it
        for i, (feature, encode) in enumerate(zip(features, self._encoders, strict=True)):
            chunks, counts = flat_values(table.column(feature.source_column))
            own = lengths[i * num_rows : (i + 1) * num_rows]
            if counts is not None:
                own[:] = counts
            if feature.max_values is not None:
                chunks = self._truncated(feature, table.column(feature.source_column), chunks, own)
            if feature.ngram == 1:
                parts.extend((encode, chunk, len(chunk)) for chunk in chunks)
                continue
            sizes = [len(chunk) for chunk in table.column(feature.source_column).chunks]
            runs, before = ngram_counts(own, feature.ngram), own.copy()
            for chunk, begin, size in zip(chunks, accumulate(sizes, initial=0), sizes, strict=False):
                of_chunk = slice(begin, begin + size)
                encode_runs = partial(self._ngrams[i], lengths=before[of_chunk])
                parts.append((encode_runs, chunk, int(runs[of_chunk].sum(dtype=np.int64))))
            own[:] = runs
        values: Rows = np.empty(sum(count for _, _, count in parts), np.int64)
        end = 0
        for encode, chunk, count in parts:  # each result is copied while it is in cache, and its memory serves the next
            begin, end = end, end + count
            values[begin:end] = encode(chunk)
        return KeyedJagged([feature.name for feature in features], _torch(values), _torch(lengths))

    @staticmethod
    def _truncated(
        feature: SparseFeature, column: pa.ChunkedArray, chunks: Sequence[pa.Array], lengths: Lengths
    ) -> list[pa.Array]:
        """The chunks' values cut to `feature.max_values` a row, and `lengths` set to what is left."""
        cut: list[pa.Array] = []
        end = 0
        for chunk, rows in zip(chunks, column.chunks, strict=True):
            begin, end = end, end + len(rows)
            values, lengths[begin:end] = truncated(chunk, lengths[begin:end], feature)
            cut.append(values)
        return cut


@final
class ToBatch:
    """A function from a table of B rows to a `Batch`, as `schema` says. Picklable, and safe in several threads.

    Its tensors are its own, so the table may go away. ValueError for a null, NaN or infinite label, or a weight that
    is one of these or negative; a column the schema wants is checked beforehand, by `Schema.validate`. `sparse` makes
    the sparse part; None: `ToJagged` of the schema's features. `dedup.DedupSparse` stores repeated rows once.

    >>> from lightning_intune.config import DenseFeature, SparseFeature
    >>> schema = Schema(dense=[DenseFeature(name="price", default=1.5)], labels=["click"],
    ...                 sparse=[SparseFeature(name="item", num_embeddings=80, transform="id")])
    >>> batch = ToBatch(schema)(pa.table({"price": [4.0, None], "item": [3, 99], "click": [1, 0]}))
    >>> batch.dense.tolist(), batch.sparse.values().tolist(), batch.labels.tolist()
    ([[4.0], [1.5]], [4, 0], [[1.0], [0.0]])
    """

    def __init__(
        self,
        schema: Schema,
        *,
        sparse: Callable[[pa.Table], KeyedJagged | InverseKeyedJaggedTensor] | None = None,
    ) -> None:
        self._schema = schema
        self._sparse = ToJagged(schema.sparse) if sparse is None else sparse
        self._defaults = np.array([feature.default for feature in schema.dense], np.float32)[:, np.newaxis]
        self._clamps = [(i, feature.clamp) for i, feature in enumerate(schema.dense) if feature.clamp is not None]
        self._counts = [i for i, feature in enumerate(schema.dense) if feature.transform == "log1p"]

    def __call__(self, table: pa.Table) -> Batch:
        """The batch of these rows."""
        return self.beside(self._sparse(table), table)

    def beside(self, sparse: KeyedJagged | InverseKeyedJaggedTensor, table: pa.Table) -> Batch:
        """The batch of these rows, its sparse part given; the table need have no column of that."""
        return Batch(
            dense=self._dense(table),
            sparse=sparse,
            labels=_torch(np.ascontiguousarray(_exact(table, self._schema.labels, "label").T)),
            weights=None if self._schema.weight is None else _weights(table, self._schema.weight),
        )

    def _dense(self, table: pa.Table) -> Tensor:
        # Feature by feature in memory while they are computed; one transposing copy at the end is the cheaper order.
        block = _block(table, [feature.source_column for feature in self._schema.dense])
        np.copyto(block, self._defaults, where=~np.isfinite(block))
        for i, (low, high) in self._clamps:
            np.clip(block[i], low, high, out=block[i])
        for i in self._counts:
            np.log1p(np.maximum(block[i], 0, out=block[i]), out=block[i])
        return _torch(np.ascontiguousarray(block.T))

    def __repr__(self) -> str:
        return f"ToBatch({self._schema!r})"


def _block(table: pa.Table, columns: Sequence[str]) -> Floats:
    block: Floats = np.empty((len(columns), table.num_rows), np.float32)
    for i, column in enumerate(columns):
        fill_floats(table.column(column), block[i])
    return block


def _exact(table: pa.Table, columns: Sequence[str], role: str) -> Floats:
    """Columns [len(columns), B] that may not be made up: ValueError names the column and its first bad row."""
    block = _block(table, columns)
    good = np.isfinite(block)
    if not good.all():
        place, row = (int(index) for index in np.argwhere(~good)[0])
        raise ValueError(
            f"{role} column '{columns[place]}' holds {table.column(columns[place])[row].as_py()} in row {row} of its "
            f"batch, and {int((~good[place]).sum())} such values. Leave those rows out, or fill them where the files "
            "are written."
        )
    return block


def _weights(table: pa.Table, column: str) -> Tensor:
    weights = _exact(table, [column], "weight")[0]
    if (weights < 0).any():
        raise ValueError(
            f"weight column '{column}' holds {weights.min()}; a negative weight would train away from the sample. "
            "Give weights of 0 or more."
        )
    return _torch(weights)


def _torch(array: npt.NDArray[np.float32 | np.int64 | np.int32]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType] - torch types it loosely
