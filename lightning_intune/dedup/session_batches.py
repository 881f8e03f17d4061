"""Batches of so many sessions, or of so many impressions where a row is a session."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Protocol, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_list
from lightning_intune.config import check_columns
from lightning_intune.dedup.columns import as_one
from lightning_intune.dedup.etl.session_layout import session_bounds
from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State

Edges = npt.NDArray[np.int64]


class _Units(Protocol):
    """What a batch has a fixed number of."""

    def count(self, table: pa.Table) -> int: ...

    def cut(self, table: pa.Table, begin: int, end: int) -> pa.Table: ...


@final
class SessionBatches(Node[pa.Table]):
    """Arrow tables of any sizes into tables of a fixed size, counted as `Rebatch` cannot, in order.

    With `session`, the column whose equal values stand side by side (`lightning-intune cluster` writes them so), a
    table has the rows of `batch_size` sessions. One that goes on in the next row group counts anew there.

    With `session_level`, the columns that hold one value for a whole session (the session layout), a table has
    `batch_size` impressions: a session that does not fit is cut, and its rest begins the next table. `Rebatch` gives
    so many sessions of that layout, and so many impressions of rows.

    The last table may be smaller, or is left out with `drop_last`. State is the source's state before the oldest
    table that is not used up, and how much of it is out. ConfigError unless one of the two is given; ValueError for
    columns that disagree on how many impressions a session has.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> rows = IterableSource([pa.table({"s": [7, 7, 8], "n": [0, 1, 2]}), pa.table({"s": [9], "n": [3]})])
    >>> [table["n"].to_pylist() for table in SessionBatches(rows, batch_size=2, session="s")]
    [[0, 1, 2], [3]]
    >>> sessions = IterableSource([pa.table({"s": [7, 8], "n": [[0, 1, 2], [3]]})])
    >>> [table.to_pydict() for table in SessionBatches(sessions, batch_size=2, session_level=["s"])]
    [{'s': [7], 'n': [[0, 1]]}, {'s': [7, 8], 'n': [[2], [3]]}]
    """

    replays = True

    def __init__(
        self,
        source: BaseNode[pa.Table],
        batch_size: int,
        *,
        session: str | None = None,
        session_level: Collection[str] | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(source)
        if batch_size < 1:
            raise ConfigError(f"SessionBatches: batch_size={batch_size} makes no batch. Set it to 1 or more.")
        if isinstance(session_level, str):
            raise ConfigError(f"SessionBatches: session_level='{session_level}' is a text. Give ['{session_level}'].")
        if (session is None) == (session_level is None):
            raise ConfigError(
                "SessionBatches: give session= (rows, counted by their sessions) or session_level= (sessions, counted "
                "by their impressions), and not both."
            )
        self._units: _Units = (
            _Sessions(session) if session is not None else _Impressions(frozenset(session_level or ()))
        )
        self._source, self._batch_size, self._drop_last = source, batch_size, drop_last

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state = initial_state or {"source": None, "out": 0}
        self._source.reset(state["source"])
        # Of tables that are not used up: the source's state before it, what of it is out, how much it has, and itself.
        self._rest: deque[tuple[State, int, int, pa.Table]] = deque()
        self._num_rest = 0
        if state["out"] > 0:
            self._pull(state["out"])

    def next(self) -> pa.Table:
        while self._num_rest < self._batch_size:
            try:
                self._pull(0)
            except StopIteration:
                break
        size = min(self._batch_size, self._num_rest)
        if size == 0 or (self._drop_last and size < self._batch_size):
            raise StopIteration
        parts: list[pa.Table] = []
        while size > 0:
            before, out, count, table = self._rest.popleft()
            end = min(count, out + size)
            parts.append(self._units.cut(table, out, end))
            size -= end - out
            self._num_rest -= end - out
            if end < count:
                self._rest.appendleft((before, end, count, table))
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def get_state(self) -> State:
        if not self._rest:
            return {"source": self._source.state_dict(), "out": 0}
        before, out, _, _ = self._rest[0]
        return {"source": before, "out": out}

    def _pull(self, out: int) -> None:
        before = self._source.state_dict()
        table = next(self._source)
        count = self._units.count(table)
        if count < out:
            raise ConfigError(
                f"SessionBatches: this state is {out} into a table that has {count} here. Resume with the same data "
                "and the same stages before this one."
            )
        if count > out:
            self._rest.append((before, out, count, table))
            self._num_rest += count - out


@final
class _Sessions:
    """Sessions of tables of rows."""

    def __init__(self, column: str) -> None:
        self._column = column

    def count(self, table: pa.Table) -> int:
        return len(self._bounds(table)) - 1

    def cut(self, table: pa.Table, begin: int, end: int) -> pa.Table:
        bounds = self._bounds(table)
        return table.slice(bounds[begin], bounds[end] - bounds[begin])

    def _bounds(self, table: pa.Table) -> Edges:
        check_columns("SessionBatches", [self._column], table.column_names)
        return session_bounds(table.column(self._column))


@final
class _Impressions:
    """Impressions of tables of sessions."""

    def __init__(self, level: frozenset[str]) -> None:
        self._level = level

    def count(self, table: pa.Table) -> int:
        return int(self._edges(table)[-1])

    def cut(self, table: pa.Table, begin: int, end: int) -> pa.Table:
        edges = self._edges(table)
        first, last = int(np.searchsorted(edges, begin, "right")) - 1, int(np.searchsorted(edges, end, "left"))
        part, inner = table.slice(first, last - first), np.clip(edges[first : last + 1], begin, end)
        at = begin - int(edges[first])
        for place, name in enumerate(table.column_names):
            if name not in self._level:
                part = part.set_column(place, name, _between(as_one(part.column(name)), at, inner - begin))
        return part

    def _edges(self, table: pa.Table) -> Edges:
        lists = [name for name in table.column_names if name not in self._level]
        if not lists or not all(is_list(table.schema.field(name).type) for name in lists):
            odd = next((name for name in lists if not is_list(table.schema.field(name).type)), None)
            what = "session_level names every column" if odd is None else f"column '{odd}' holds no lists"
            raise ConfigError(
                f"SessionBatches: {what}, so nothing says how many impressions a session has. Name in session_level "
                "the columns with one value for the whole session, and no others."
            )
        edges: Edges | None = None
        for name in lists:
            counts = pc.fill_null(pc.list_value_length(table.column(name)), 0).to_numpy()
            own = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
            if edges is not None and not np.array_equal(edges, own):
                raise ValueError(
                    f"columns '{lists[0]}' and '{name}' differ in how many entries a session has, and each impression "
                    "needs one of both. Write the files anew, or name one in session_level if it is the session's own."
                )
            edges = own
        assert edges is not None, "there is a column of lists"
        return edges


def _between(lists: pa.Array, skipped: int, edges: Edges) -> pa.Array:
    """Lists with those `edges`, counted from the entry after the first `skipped` of `lists`."""
    values = lists.flatten().slice(skipped, int(edges[-1]))
    if pa.types.is_large_list(lists.type):
        return pa.LargeListArray.from_arrays(pa.array(edges), values, type=lists.type)
    return pa.ListArray.from_arrays(pa.array(edges.astype(np.int32)), values, type=lists.type)
