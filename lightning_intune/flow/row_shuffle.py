"""Batches whose rows come from several row groups at once, cut without copying a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa

from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, State
from lightning_intune.flow.seeded import Seeded


@final
@dataclass(kw_only=True)
class _Open:
    """A table that still has rows: where it is in the epoch, and what is left of it. The owning node's alone."""

    number: int
    source: State
    """The source's state before it."""
    rows_out: int
    rest: pa.Table


@final
class RowShuffle(Seeded[pa.Table]):
    """Arrow tables (row groups) into tables of `batch_size` rows, each drawn from `num_tables` of them at once.

    It stands where `Rebatch` stands. A batch takes one run of successive rows from every open table, older tables
    giving up to twice as much as the newest, so that they run out one after another; once the source has ended each
    gives in proportion to what it has left. Within a run the rows are as they came: with a reader that permutes each
    row group (`ParquetSource(shuffle=True)` does) a batch is a random sample of all rows held, and with one that does
    not, sessions stay together. No row is copied: a batch is made of slices, at most one per open table.

    It holds `num_tables` tables (more only where `batch_size` rows need more). Shares are drawn from (seed, epoch,
    batch number); the state has those, two numbers per open table and the source's state before the oldest one, and
    a resume pulls the tables from there again. The last batch may be shorter, or is left out with `drop_last`.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> tables = IterableSource([pa.table({"n": [0, 1, 2, 3]}), pa.table({"n": [4, 5, 6, 7]})])
    >>> [batch["n"].to_pylist() for batch in RowShuffle(tables, batch_size=4, num_tables=2)]
    [[0, 1, 2, 4], [3, 5, 6, 7]]
    """

    replays = True

    def __init__(
        self,
        source: BaseNode[pa.Table],
        batch_size: int,
        *,
        num_tables: int,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(source, seed=seed)
        if batch_size < 1:
            raise ConfigError(f"RowShuffle: batch_size={batch_size} makes no batch. Set it to 1 or more.")
        if num_tables < 1:
            raise ConfigError(
                f"RowShuffle: num_tables={num_tables} holds no rows. Set it to 2 or more; Rebatch mixes none."
            )
        self._source, self._batch_size, self._drop_last = source, batch_size, drop_last
        self.num_tables = num_tables

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state = self._begin(initial_state, batch=0, ended=False, source=None, pulled=0, tables=[])
        self._batch: int = state["batch"]
        self._source.reset(state["source"])
        self._open: list[_Open] = []  # oldest first
        self._num_rows = 0  # left in the open ones
        self._num_pulled = 0  # since this reset; only differences of these numbers are kept
        self._ended = False
        for offset, rows_out in state["tables"]:
            self._pass_over(offset)
            self._pull(rows_out)
        self._pass_over(state["pulled"])
        # A state taken after the source's end must not ask it again before its batches are cut as they would have been.
        self._ended = state["ended"]

    def next(self) -> pa.Table:
        while not self._ended and (len(self._open) < self.num_tables or self._num_rows < self._batch_size):
            try:
                self._pull(0)
            except StopIteration:
                self._ended = True
        size = min(self._batch_size, self._num_rows)
        if size == 0 or (self._drop_last and size < self._batch_size):
            raise StopIteration
        batch = self._cut(self._shares(size))
        self._batch += 1
        return batch

    def get_state(self) -> State:
        # Tables that are open, or that one older than they is: those a resume has to pull again.
        source, first = (
            (self._open[0].source, self._open[0].number)
            if self._open
            else (self._source.state_dict(), self._num_pulled)
        )
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "batch": self._batch,
            "ended": self._ended,
            "source": source,
            "pulled": self._num_pulled - first,
            "tables": [[table.number - first, table.rows_out] for table in self._open],
        }

    def _pass_over(self, number: int) -> None:
        """Pull the tables before `number`: they were used up when the state was taken."""
        while self._num_pulled < number:
            next(self._source)
            self._num_pulled += 1

    def _pull(self, rows_out: int) -> None:
        """Open the source's next table, `rows_out` rows of which are out; an empty one is passed over."""
        before = self._source.state_dict()
        rest = next(self._source).slice(rows_out)
        if rest.num_rows > 0:
            self._open.append(_Open(number=self._num_pulled, source=before, rows_out=rows_out, rest=rest))
            self._num_rows += rest.num_rows
        self._num_pulled += 1

    def _shares(self, num_rows: int) -> list[int]:
        """How many of `num_rows` rows each open table gives."""
        rng = np.random.Generator(np.random.PCG64([self._seed, self._epoch, self._batch]))
        rows = [table.rest.num_rows for table in self._open]
        weights = rows if self._ended else [2 * len(rows) - age for age in range(len(rows))]
        shares = [0] * len(rows)
        while (missing := num_rows - sum(shares)) > 0:
            open_weights = [w if share < r else 0 for w, share, r in zip(weights, shares, rows, strict=True)]
            more = _systematic(open_weights, missing, int(rng.integers(sum(open_weights))))
            shares = [min(share + m, r) for share, m, r in zip(shares, more, rows, strict=True)]
        return shares

    def _cut(self, shares: Sequence[int]) -> pa.Table:
        parts: list[pa.Table] = []
        for table, share in zip(self._open, shares, strict=True):
            if share > 0:
                parts.append(table.rest.slice(0, share))
                table.rest, table.rows_out = table.rest.slice(share), table.rows_out + share
        self._open = [table for table in self._open if table.rest.num_rows > 0]
        self._num_rows -= sum(shares)
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_open": []}


def _systematic(weights: Sequence[int], count: int, start: int) -> list[int]:
    """`count` dealt out by weight, each share within 1 of its due; `start`, in [0, sum of weights), decides the rest.

    Drawn evenly, `start` makes every share right in the mean. Source: Madow & Madow (1944), systematic sampling.
    >>> _systematic([1, 1, 2], 3, 0), _systematic([1, 1, 2], 3, 3)
    ([0, 1, 2], [1, 1, 1])
    """
    total, bound, dealt = sum(weights), 0, 0
    shares: list[int] = []
    for weight in weights:
        bound += weight
        edge = (bound * count + start) // total
        shares.append(edge - dealt)
        dealt = edge
    return shares
