"""Features that change together: where their rows repeat, and the embedding rows of those that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.column_types import is_list, is_number, is_text, plain
from lightning_intune.config import SparseFeature
from lightning_intune.dedup.columns import Column, as_one, plain_lists
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.dedup.rows import Engine, Lengths, find_equal_together
from lightning_intune.errors import ConfigError
from lightning_intune.flow.features import SparseEncoder, flat_values
from lightning_intune.flow.ngrams import NgramEncoder, ngram_counts
from lightning_intune.flow.transform import ToJagged
from lightning_intune.flow.truncate import truncated


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The stored rows of some features, in pieces that are joined once, when all of a batch's are there."""

    keys: tuple[str, ...]
    values: Sequence[npt.NDArray[np.int64]]
    """One feature after the other, in any number of pieces."""
    lengths: npt.NDArray[np.int32]
    """[len(keys) * rows], feature by feature."""
    inverse: npt.NDArray[np.int64] | None = None
    """[B]: which stored row each row of the batch has. None: every row is stored."""

    @staticmethod
    def of(jagged: KeyedJagged) -> Part:
        """Every row, as it is."""
        return Part(keys=tuple(jagged.keys()), values=[jagged.values().numpy()], lengths=jagged.lengths().numpy())


_TOGETHER_VALUES = 32_768  # in one go: an encoder's passes over them stay in the cache


@final
class GroupEncoder:
    """A function from a table to the `Part` of one group of features. Picklable, and safe in several threads.

    >>> features = [SparseFeature(name=name, num_embeddings=80, transform="id") for name in ("user", "age")]
    >>> part = GroupEncoder(features)(pa.table({"user": [3, 3, 5], "age": [40, 40, 2]}))
    >>> np.concatenate(part.values).tolist(), part.inverse.tolist()
    ([4, 6, 41, 3], [0, 0, 1])
    """

    def __init__(self, features: Sequence[SparseFeature], *, engine: Engine = "auto") -> None:
        self._features = tuple(features)
        self._engine: Engine = engine
        self._whole = ToJagged(features)
        self._encoders = [SparseEncoder(feature) for feature in features]
        self._ngrams = [NgramEncoder(feature) for feature in features]
        self._columns = tuple(dict.fromkeys(feature.source_column for feature in features))

    def __call__(self, table: pa.Table) -> Part:
        """The group's part of the batch of these rows."""
        for name in self._columns:
            _check_comparable(name, table.schema.field(name).type)
        columns = {name: Column(table.column(name)) for name in self._columns}
        found = find_equal_together([rows for column in columns.values() for rows in column.rows], engine=self._engine)
        if len(found.firsts) == table.num_rows:
            return Part.of(self._whole(table))
        taken = {name: column.take(found.firsts, engine=self._engine) for name, column in columns.items()}
        return self._part(taken, found.inverse)

    def stored(self, table: pa.Table, inverse: npt.NDArray[np.int64]) -> Part:
        """Every row of the table as one that is stored, as in the session layout: nothing is sought."""
        return self._part({name: _flat(table.column(name)) for name in self._columns}, inverse)

    def _part(self, taken: Mapping[str, tuple[pa.Array, Lengths]], inverse: npt.NDArray[np.int64]) -> Part:
        flat = [truncated(*taken[feature.source_column], feature, engine=self._engine) for feature in self._features]
        lengths = [ngram_counts(own[1], feature.ngram) for own, feature in zip(flat, self._features, strict=True)]
        names = tuple(feature.name for feature in self._features)
        return Part(keys=names, values=self._encoded(flat), lengths=np.concatenate(lengths), inverse=inverse)

    def _encoded(self, flat: Sequence[tuple[pa.Array, Lengths]]) -> list[npt.NDArray[np.int64]]:
        """The embedding rows of each feature's values, one feature after the other."""
        parts: list[npt.NDArray[np.int64]] = []
        for places in self._alike(flat):
            first, values = places[0], [flat[place][0] for place in places]
            joined = values[0] if len(places) == 1 else pa.concat_arrays(values)
            if self._features[first].ngram > 1:
                lengths = flat[first][1] if len(places) == 1 else np.concatenate([flat[place][1] for place in places])
                parts.append(self._ngrams[first](joined, lengths))
                continue
            encode = self._encoders[first]
            starts = range(0, len(joined), _TOGETHER_VALUES)
            parts += [encode(joined.slice(begin, _TOGETHER_VALUES)) for begin in starts]
        return parts

    def _alike(self, flat: Sequence[tuple[pa.Array, Lengths]]) -> list[list[int]]:
        """Neighbours to encode in one go: where they are few, a call for each would cost more than the hashing itself.

        Not where they are many: joining them copies them.
        """
        together: list[list[int]] = []
        room, kind = 0, None
        for place, (values, _) in enumerate(flat):
            own = self._kind(place, values)
            if own == kind and len(values) <= room:
                together[-1].append(place)
                room -= len(values)
            else:
                together.append([place])
                room, kind = _TOGETHER_VALUES - len(values), own
        return together

    def _kind(self, place: int, values: pa.Array) -> tuple[object, ...]:
        """What two neighbours must have in common to be encoded in one go."""
        one = self._features[place]
        own = place if isinstance(values, pa.DictionaryArray) else -1  # a dictionary's rows are kept by its encoder
        return own, values.type, one.transform, one.num_embeddings, one.boundaries, one.seed, one.ngram, one.clamp


@cache  # asked of each column of each batch
def _check_comparable(name: str, kind: pa.DataType) -> None:
    value = plain(kind.value_type) if is_list(kind) else plain(kind)
    if not (is_number(value) or is_text(value) or pa.types.is_temporal(value)):
        raise ConfigError(
            f"DedupSparse: column '{name}' holds {kind}, and rows are compared that are values or lists of them. Write "
            "it as lists of numbers or texts, or leave it out of the plan."
        )


def _flat(column: pa.ChunkedArray) -> tuple[pa.Array, Lengths]:
    """A column's values in one array, and how many each row has."""
    array = as_one(column)
    found = plain_lists(array)
    if found is not None:
        return found[0], found[1].astype(np.int32, copy=False)
    (values,), counts = flat_values(pa.chunked_array([array]))
    return values, np.ones(len(array), np.int32) if counts is None else counts
