"""The loaders of one process share its budget (Lightning's CombinedLoader, validation beside training)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import final

from lightning_intune.control.arbiter import Arbiter
from lightning_intune.control.budget import BudgetReading, ReadsBudget
from lightning_intune.control.shared_budget import Demand, SharedBudget
from lightning_intune.meters import FlowStats

STALE_S = 10.0
"""Whoever tells nothing for so long, while others do, has no part until it reads again."""
MOST_GAP_S = 3.0
"""A turn that took longer counts as this long: all stood still meanwhile (validation, a checkpoint)."""
_UNKNOWN = Demand(cpus=float("nan"), memory_bytes=float("nan"))


@final
class LoaderBudgets:
    """Gives each loader its part of `whole`: CPUs by need, memory in equal parts. One thread's.

    Memory is metered for the process as a whole, so each sees its part of what is held and of the limit: growth that
    fits each part fits the whole. The trainer's CPU time is charged to all in equal parts.
    """

    def __init__(self, whole: ReadsBudget, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._whole, self._clock = whole, clock
        self._demands: dict[str, Demand] = {}
        self._ages_s: dict[str, float] = {}
        self._resting: set[str] = set()
        self._arbiter: Arbiter[str] = Arbiter()
        self._told_s: float | None = None

    def part(self, name: str) -> SharedBudget:
        """The one of the loader `name`, which shares from its first `read` on."""
        self._demands[name], self._ages_s[name] = _UNKNOWN, 0.0
        self._resting.add(name)
        return LoaderBudget(self, name)

    def read(self, name: str) -> BudgetReading:
        """The part of `name`, which is at work from now on."""
        self._resting.discard(name)
        self._ages_s[name] = 0.0
        whole = self._whole.read()
        active = self._active()
        shares = self._arbiter.shares(whole.cpus, {other: self._demands[other].cpus for other in active})
        return replace(
            whole,
            cpus=whole.cpus * shares[name],
            memory_bytes=whole.memory_bytes // len(active),
            memory_limit_bytes=whole.memory_limit_bytes // len(active),
        )

    def tell(self, name: str, demand: Demand) -> None:
        """What `name` could use; the sum goes on to whoever shares the whole with this process."""
        now_s = self._clock()
        passed_s = 0.0 if self._told_s is None else min(now_s - self._told_s, MOST_GAP_S)
        self._told_s = now_s
        self._ages_s = {other: age_s + passed_s for other, age_s in self._ages_s.items()} | {name: 0.0}
        self._demands[name] = demand
        if isinstance(self._whole, SharedBudget):
            known = [told for other in self._active() if (told := self._demands[other]) is not _UNKNOWN]
            self._whole.tell(
                Demand(
                    cpus=sum(told.cpus for told in known),
                    memory_bytes=sum(told.memory_bytes for told in known),
                    thread_cpus=sum(told.thread_cpus for told in known),
                )
            )

    def rest(self, name: str) -> None:
        """`name` stands still; with the last one the whole does."""
        self._resting.add(name)
        if isinstance(self._whole, SharedBudget) and not self._active():
            self._whole.rest()

    def own(self, name: str, window: FlowStats) -> FlowStats:
        """`window` with the process's CPU seconds less the others' threads and their part of the trainer."""
        active = [other for other in self._active() if other != name]
        mine_s = sum(stage.cpu_s for stage in window.stages if stage.lane == "thread")
        others_s = window.time_s * sum(self._demands[other].thread_cpus for other in active)
        trainer_s = max(0.0, window.process_cpu_s - mine_s - others_s)
        return replace(window, process_cpu_s=mine_s + trainer_s / (len(active) + 1))

    def _active(self) -> list[str]:
        return [name for name, age_s in self._ages_s.items() if age_s < STALE_S and name not in self._resting]


@final
class LoaderBudget(SharedBudget):
    """One loader's part; made by `LoaderBudgets`."""

    def __init__(self, all_parts: LoaderBudgets, name: str) -> None:
        self._all, self._name = all_parts, name

    def read(self) -> BudgetReading:
        return self._all.read(self._name)

    def tell(self, demand: Demand) -> None:
        self._all.tell(self._name, demand)

    def rest(self) -> None:
        self._all.rest(self._name)

    def own(self, window: FlowStats) -> FlowStats:
        return self._all.own(self._name, window)
