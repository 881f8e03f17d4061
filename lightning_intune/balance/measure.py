"""How long the rows of a table are, and what they count in the loss: of impressions, and of sessions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lightning_intune.column_types import is_list
from lightning_intune.dedup.columns import column_rows
from lightning_intune.dedup.rows import find_equal_together

Ints = NDArray[np.int64]


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of every row of a table."""

    lengths: Sequence[Any]
    """A number; or an array of one for each row of a session."""
    counts: Sequence[float]


@final
class MeasureImpressions:
    """A row is as long as `columns` have values together; it counts 1, or what `weight` says. Picklable.

    >>> table = pa.table({"history": [[1, 2], [], None], "item": [7, 8, 9]})
    >>> MeasureImpressions(["history", "item"])(table).lengths
    [3, 1, 1]
    """

    def __init__(self, columns: Sequence[str], *, weight: str | None = None) -> None:
        self._columns, self._weight = tuple(columns), weight

    def __call__(self, table: pa.Table) -> Measured:
        lengths = sum((_num_values(table.column(name)) for name in self._columns), np.zeros(table.num_rows, np.int64))
        counts = [1.0] * table.num_rows if self._weight is None else _floats(table.column(self._weight)).tolist()
        return Measured(lengths=lengths.tolist(), counts=counts)


@final
class MeasureSessions:
    """A row is a session: columns in `level` have one value for all of it, the others a list with one per impression.

    Its lengths are those of its impressions, `columns` together, less those that repeat an earlier one of the session
    where `is_deduplicated`; and one more for what is the session's own. It counts as many as it has impressions, or
    the sum of their `weight`. Picklable.

    >>> table = pa.table({"user": [[1, 2, 3], [4]], "history": [[[5], [5], [6, 7]], [[8]]]})
    >>> measure = MeasureSessions(["user", "history"], level=["user"], is_deduplicated=True)
    >>> [length.tolist() for length in measure(table).lengths], measure(table).counts
    ([[1, 2, 3], [1, 1]], [3.0, 1.0])
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        level: Collection[str],
        is_deduplicated: bool,
        weight: str | None = None,
        rows: str | None = None,
    ) -> None:
        self._own = [name for name in columns if name not in level]
        self._shared = [name for name in columns if name in level]
        self._is_deduplicated, self._weight, self._level = is_deduplicated, weight, frozenset(level)
        self._rows = rows or (self._own[0] if self._own else None)

    def __call__(self, table: pa.Table) -> Measured:
        name = self._rows or next(name for name in table.column_names if name not in self._level)
        sizes = _num_values(table.column(name))
        owner = np.repeat(np.arange(table.num_rows), sizes)
        values, owners = np.zeros(0, np.int64), np.zeros(0, np.int64)
        if self._own:
            flat = [pc.list_flatten(table.column(column)) for column in self._own]
            each = sum((_num_values(column) for column in flat), np.zeros(len(owner), np.int64))
            kept = self._first_of_each(owner, flat) if self._is_deduplicated and len(owner) else np.arange(len(owner))
            values, owners = each[kept], owner[kept]
        if self._shared:
            own = sum((_num_values(table.column(column)) for column in self._shared), np.zeros(len(sizes), np.int64))
            values, owners = np.concatenate([values, own]), np.concatenate([owners, np.arange(len(sizes))])
            order = np.argsort(owners, kind="stable")
            values, owners = values[order], owners[order]
        ends = np.cumsum(np.bincount(owners, minlength=table.num_rows))
        return Measured(lengths=np.split(values, ends[:-1]), counts=self._counts(table, sizes, owner))

    def _first_of_each(self, owner: Ints, flat: Sequence[pa.ChunkedArray]) -> Ints:
        found = find_equal_together([rows for column in flat for rows in column_rows(column)])
        _, first = np.unique(owner * len(owner) + found.inverse, return_index=True)
        return np.sort(first)

    def _counts(self, table: pa.Table, sizes: Ints, owner: Ints) -> list[float]:
        if self._weight is None:
            return sizes.astype(np.float64).tolist()
        column = table.column(self._weight)
        if self._weight in self._level:
            return (_floats(column) * sizes).tolist()
        return np.bincount(owner, _floats(pc.list_flatten(column)), table.num_rows).tolist()


def _num_values(column: pa.ChunkedArray) -> Ints:
    """How many values each row has: a list's length, 0 for a null one; 1 for a scalar."""
    if not is_list(column.type):
        return np.ones(len(column), np.int64)
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
