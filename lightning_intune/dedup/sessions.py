"""The session layout: one row of a table per session, so that nothing repeats and nothing need be searched."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_list
from lightning_intune.config import Schema, check_columns
from lightning_intune.dedup.columns import plain_lists
from lightning_intune.dedup.group_encoder import GroupEncoder, Part
from lightning_intune.dedup.jagged import Batch
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.rows import Engine
from lightning_intune.dedup.transform import DedupSparse, assemble
from lightning_intune.errors import ConfigError
from lightning_intune.flow.transform import ToBatch


@final
class SessionsToBatch:
    """A function from a table of sessions to the `Batch` of their impressions. Picklable, safe in several threads.

    Columns named in `session_level` hold one value (or list) for the whole session, every other column a list with
    one entry for each impression. Sparse features of the session are transformed once each; the batch's rows are the
    impressions, session after session. `plan` names features of the impressions that repeat often enough to be sought,
    such as a history that moves on within the session. A session without impressions adds no row. ValueError where
    two columns disagree on how many impressions a session has; ConfigError where every feature is the session's.

    `lightning-intune cluster --layout sessions` writes such files, and `session_level` from a file's metadata reads
    which columns are which.

    >>> from lightning_intune.config import SparseFeature
    >>> features = [SparseFeature(name=name, num_embeddings=80, transform="id") for name in ("user", "item")]
    >>> schema = Schema(sparse=features, labels=["click"])
    >>> table = pa.table({"user": [3, 5], "item": [[1, 2], [3]], "click": [[0, 1], [0]]})
    >>> batch = SessionsToBatch(schema, session_level=["user"])(table)
    >>> batch.sparse["user"][0].tolist(), batch.sparse["item"][0].tolist(), batch.labels.tolist()
    ([4, 4, 6], [2, 3, 4], [[0.0], [1.0], [0.0]])
    """

    def __init__(
        self, schema: Schema, *, session_level: Collection[str], plan: DedupPlan | None = None, engine: Engine = "auto"
    ) -> None:
        self._level = frozenset(session_level)
        self._lists = tuple(name for name in schema.columns if name not in self._level)
        if not self._lists:
            raise ConfigError(
                "SessionsToBatch: session_level names every column of the schema, so nothing says how many impressions "
                "a session has. Leave out of it what each impression has of its own: the labels at least."
            )
        shared = [feature for feature in schema.sparse if feature.source_column in self._level]
        own = [feature for feature in schema.sparse if feature.source_column not in self._level]
        self._keys = [feature.name for feature in schema.sparse]
        self._shared = GroupEncoder(shared, engine=engine) if shared else None
        self._own = DedupSparse(own, plan or DedupPlan(), engine=engine) if own else None
        self._own_columns = {feature.source_column for feature in own}
        dense = {feature.source_column for feature in schema.dense} | set(schema.labels)
        self._row_columns = dense | ({schema.weight} if schema.weight else set[str]())
        self._columns = schema.columns
        self._to_batch = ToBatch(schema)

    @property
    def session_level(self) -> frozenset[str]:
        """Columns with one value for the whole session."""
        return self._level

    def validate(self, table: pa.Schema) -> None:
        """ConfigError unless the columns that hold an entry for each impression are lists."""
        check_columns("SessionsToBatch", self._lists, table.names)
        for name in self._lists:
            if not is_list(table.field(name).type):
                raise ConfigError(
                    f"SessionsToBatch: column '{name}' holds {table.field(name).type}, one value for a whole session. "
                    "Name it in session_level, or write it as a list of one entry for each impression."
                )

    def __call__(self, table: pa.Table) -> Batch:
        """The batch of these sessions."""
        counts = self._counts(table)
        if (counts == 1).all():  # each session is one row, and nothing repeats
            whole = {name: self._as_row(table, name) for name in self._columns}
            return self._to_batch(pa.table(whole))
        inverse = np.repeat(np.arange(table.num_rows, dtype=np.int64), counts)
        rows = pa.table({name: self._rows(table, name, inverse) for name in self._wanted()})
        parts: list[Part] = []
        if self._shared is not None:
            parts.append(self._shared.stored(table, inverse))
        if self._own is not None:
            parts += self._own.parts(rows)
        return self._to_batch.beside(assemble(parts, self._keys, len(inverse)), rows)

    def _wanted(self) -> list[str]:
        names = self._own_columns | self._row_columns
        return sorted(names) or [self._lists[0]]

    def _rows(self, table: pa.Table, name: str, inverse: npt.NDArray[np.int64]) -> pa.ChunkedArray:
        column = table.column(name)
        return column.take(pa.array(inverse)) if name in self._level else _entries(column)

    def _as_row(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        return table.column(name) if name in self._level else pc.list_flatten(table.column(name))

    def _counts(self, table: pa.Table) -> npt.NDArray[np.int64]:
        counts: npt.NDArray[np.int64] | None = None
        for name in self._lists:
            lengths = _list_lengths(table.column(name))
            if counts is not None and not np.array_equal(counts, lengths):
                row = int(np.argmax(counts != lengths))
                raise ValueError(
                    f"column '{name}' has {lengths[row]} entries in session {row} of its batch, and '{self._lists[0]}' "
                    f"has {counts[row]}: each impression needs one of both. Write the files anew, or name '{name}' in "
                    "session_level if it holds the session's own list."
                )
            counts = lengths
        assert counts is not None, "there is a column that is not the session's"
        return counts


def _entries(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The entries of all lists, one after the other."""
    found = plain_lists(column.chunk(0)) if column.num_chunks == 1 else None
    return pc.list_flatten(column) if found is None else pa.chunked_array([found[0]])


def _list_lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """How many entries each list has; none where it is null."""
    found = plain_lists(column.chunk(0)) if column.num_chunks == 1 else None
    if found is not None:
        return found[1].astype(np.int64, copy=False)
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
