"""Rows of Arrow tables as the samples that are balanced: handles that weigh little until one moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final

import pyarrow as pa

from lightning_intune.balance.measure import Measured
from lightning_intune.flow.node import BaseNode, Node, State


@final
class Row:
    """One row of `table`, an impression or a session. What is pickled of it is the row alone."""

    __slots__ = ("count", "length", "place", "table")

    def __init__(self, table: pa.Table, place: int, length: Any, count: float) -> None:
        self.table, self.place = table, place
        self.length, self.count = length, count

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()
        row = self.table.slice(self.place, 1)
        with pa.ipc.new_stream(sink, row.schema) as stream:
            stream.write_table(row)
        return _received, (sink.getvalue().to_pybytes(), self.length, self.count)


def _received(message: bytes, length: Any, count: float) -> Row:
    with pa.ipc.open_stream(message) as stream:
        return Row(stream.read_all(), 0, length, count)


def joined(rows: Sequence[Row]) -> pa.Table:
    """The rows as one table, those of one table together, in the order in which the tables first appear."""
    places: dict[int, tuple[pa.Table, list[int]]] = {}
    for row in rows:
        places.setdefault(id(row.table), (row.table, []))[1].append(row.place)
    parts = [
        table.slice(wanted[0], len(wanted))
        if wanted == list(range(wanted[0], wanted[0] + len(wanted)))
        else table.take(pa.array(wanted))
        for table, wanted in places.values()
    ]
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts)


class Measure(Protocol):
    """What tells the lengths and counts of a table's rows."""

    def __call__(self, table: pa.Table) -> Measured:
        """Of every row."""
        ...


@final
class TableRows(Node[Row]):
    """The rows of the tables of `source`, one by one, measured a table at a time.

    Its state is the source's before the table, and a place in it.
    """

    replays = True

    def __init__(self, source: BaseNode[pa.Table], measure: Measure) -> None:
        super().__init__(source)
        self._source, self._measure = source, measure

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state = initial_state or {"source": None, "place": 0}
        self._source.reset(state["source"])
        self._before = self._source.state_dict()
        self._rows: list[Row] = []
        self._place = 0
        if state["place"] > 0:
            self._pull()
            self._place = state["place"]

    def next(self) -> Row:
        while self._place == len(self._rows):
            self._pull()
        self._place += 1
        return self._rows[self._place - 1]

    def get_state(self) -> State:
        if self._place == len(self._rows):
            return {"source": self._source.state_dict(), "place": 0}
        return {"source": self._before, "place": self._place}

    def _pull(self) -> None:
        self._before = self._source.state_dict()
        table = next(self._source)
        measured = self._measure(table)
        self._rows = [
            Row(table, place, length, count)
            for place, (length, count) in enumerate(zip(measured.lengths, measured.counts, strict=True))
        ]
        self._place = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rows": [], "_place": 0}
