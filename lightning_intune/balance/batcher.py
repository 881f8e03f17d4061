"""Batches of near-equal cost on one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, final

import numpy as np

from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.division import check_costs, loads, partition_by_cost
from lightning_intune.balance.lengths import Lengths
from lightning_intune.balance.plan import steps_of_equal_cost
from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State

T = TypeVar("T")


@final
class BalancedBatcher(Node[list[T]]):
    """Lists of samples of near-equal cost, out of a reservoir of `reservoir` successive samples.

    With `batch_size` every list has as many (the epoch's last may have fewer). With `max_cost` instead, a token budget
    in the unit of `cost`, a reservoir becomes as few lists as can be kept within it, of any count; a sample that alone
    costs more makes a list of its own. Samples in a list are in their order.

    A reservoir is handed out wholly before the next is pulled, so at most `reservoir` samples are held and none waits
    longer than they last. The state is the source's before the reservoir, and a place; a resume pulls it again. It
    needs the same settings; a cost model that was fitted meanwhile needs its own state back as well.

    `length` tells a sample's length, or a list with one for each row of a session; `cost` (default: the length) what
    that costs, rows added up. Where `cost` is padded a budget is one of count times the costliest. `drop_last` leaves
    out the epoch's last list where it is short. ConfigError for settings that make no batch, ValueError for a length
    or cost that is negative or NaN.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> list(BalancedBatcher(IterableSource([9, 1, 8, 2]), length=int, batch_size=2, reservoir=4))
    [[9, 1], [8, 2]]
    """

    replays = True

    def __init__(
        self,
        source: BaseNode[T],
        *,
        length: Callable[[T], Any],
        batch_size: int | None = None,
        max_cost: float | None = None,
        reservoir: int | None = None,
        cost: CostModel | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(source)
        if (batch_size is None) == (max_cost is None):
            raise ConfigError(
                "BalancedBatcher: give batch_size= or max_cost=, one of them: either count or cost is fixed."
            )
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"BalancedBatcher: batch_size={batch_size} makes no batch. Set it to 1 or more.")
        if max_cost is not None and not max_cost > 0:
            raise ConfigError(f"BalancedBatcher: max_cost={max_cost} admits no sample. Set it above 0.")
        size = reservoir if reservoir is not None else 1024 if batch_size is None else 8 * batch_size
        if size < (batch_size or 1):
            raise ConfigError(
                f"BalancedBatcher: reservoir={size} holds less than a batch. Set it to several times batch_size."
            )
        # Whole batches: a reservoir's rest would make a short one in the middle of the epoch.
        self.reservoir = size - size % batch_size if batch_size is not None else size
        self._source, self._length, self._batch_size, self._max_cost = source, length, batch_size, max_cost
        self._cost = CostModel() if cost is None else cost
        if drop_last and batch_size is None:
            raise ConfigError("BalancedBatcher: drop_last=True is for batch_size=: with max_cost= no list is short.")
        self._drop_last = drop_last

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state: State = initial_state or {"source": None, "place": 0, "reservoir": self.reservoir}
        if state["reservoir"] != self.reservoir:
            raise ConfigError(
                f"BalancedBatcher: this state is of reservoir={state['reservoir']}, and here it is {self.reservoir}: "
                "its place would mean other samples. Set the same reservoir, or start the epoch anew."
            )
        self._source.reset(state["source"])
        self._batches: list[list[T]] = []
        self._place = 0
        self._before = self._source.state_dict()
        self._ended = False
        if state["place"] > 0:
            self._fill()
            self._place = state["place"]

    def next(self) -> list[T]:
        if self._place == len(self._batches):
            self._fill()
        if not self._batches:
            raise StopIteration
        self._place += 1
        return self._batches[self._place - 1]

    def get_state(self) -> State:
        if self._place == len(self._batches):
            return {"source": self._source.state_dict(), "place": 0, "reservoir": self.reservoir}
        return {"source": self._before, "place": self._place, "reservoir": self.reservoir}

    def _fill(self) -> None:
        samples: list[T] = []
        self._batches, self._place = [], 0
        if not self._ended:
            self._before = self._source.state_dict()
        while len(samples) < self.reservoir and not self._ended:
            try:
                samples.append(next(self._source))
            except StopIteration:
                self._ended = True
        if not samples:
            return
        costs = Lengths.of(samples, self._length).costs(self._cost)
        steps = self._budgeted(costs) if self._batch_size is None else steps_of_equal_cost(costs, self._batch_size)
        batches: list[list[T]] = [[] for _ in range(int(steps.max()) + 1)]
        for sample, step in zip(samples, steps.tolist(), strict=True):
            batches[step].append(sample)
        least = self._batch_size if self._drop_last and self._batch_size is not None else 1
        self._batches = [batch for batch in batches if len(batch) >= least]

    def _budgeted(self, costs: np.ndarray) -> np.ndarray:
        """Each sample's batch, as few batches as keep within the budget, those of the earliest samples first."""
        assert self._max_cost is not None
        if self._cost.padded:
            return _by_first(_padded_runs(check_costs(costs), self._max_cost))
        alone = check_costs(costs) >= self._max_cost
        rest = np.flatnonzero(~alone)
        batch = np.zeros(len(costs), np.int64)
        num_batches = max(1, int(np.ceil(costs[rest].sum() / self._max_cost)))
        while len(rest):
            batch[rest] = partition_by_cost(costs[rest], num_batches, equal_count=False)
            if loads(costs[rest], batch[rest], num_batches).max() <= self._max_cost * (1 + 1e-9):
                break
            num_batches += 1 + num_batches // 64
        batch[alone] = num_batches + np.arange(int(alone.sum()))
        return _by_first(batch)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batches": [], "_place": 0}


def _by_first(batch: np.ndarray) -> np.ndarray:
    """Batches numbered in the order of their earliest samples."""
    _, first, member = np.unique(batch, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[member]


def _padded_runs(costs: np.ndarray, max_cost: float) -> np.ndarray:
    """Each sample's batch: runs from the costliest down, as long as count times the costliest stays within."""
    order = np.argsort(-costs, kind="stable")
    batch = np.zeros(len(costs), np.int64)
    begin, number = 0, 0
    while begin < len(order):
        largest = costs[order[begin]]
        size = len(order) if largest == 0 else max(1, int(max_cost * (1 + 1e-9) / largest))
        batch[order[begin : begin + size]] = number
        begin, number = begin + size, number + 1
    return batch
