"""A loader and its tuner, with meters and a clock that stand still while the loader's own phase of the run does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np

from lightning_intune.control import Decision, Tuner
from lightning_intune.control.agent import Agent
from lightning_intune.control.budget import BudgetReading, ReadsBudget
from lightning_intune.control.loader_budgets import LoaderBudgets
from lightning_intune.control.reward import Objective
from lightning_intune.control.shared_budget import Demand, SharedBudget
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.meters import FlowStats


@final
@dataclass(frozen=True, kw_only=True)
class TunerSettings:
    """What every tuner of a run is made from; each has an agent of its own."""

    new_agent: Callable[[], Agent]
    budget: ReadsBudget
    objective: Objective
    turn_interval_s: float | Literal["auto"]
    seed: int


@final
class TunedLoader:
    """A loader, its tuner, and what the tuner is shown: time, meters and the machine's use while it runs.

    Between `pause` and `resume` nothing counts, neither time nor what the stages or other jobs did: so a turn goes on
    over validations, and an epoch shorter than a turn is tuned too. It is paused once made. The training thread's.

    `budget` is its part of the run's (`LoaderBudgets`); None: all of it.
    """

    def __init__(
        self,
        loader: ElasticLoader[Any],
        settings: TunerSettings,
        *,
        budget: SharedBudget | None = None,
        warm_start: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loader = loader
        self.last: Decision | None = None
        """Of the latest turn."""
        self._tell: Callable[[], None] | None = None
        self._meters = _Meters(loader, budget or LoaderBudgets(settings.budget).part(""), clock)
        self.tuner = Tuner(
            agent=settings.new_agent(),
            knobs=loader.knobs,
            budget=self._meters,
            objective=settings.objective,
            turn_interval_s=settings.turn_interval_s,
            clock=self._meters.clock,
            rng=np.random.default_rng(settings.seed),
            warm_start=warm_start or None,
        )

    def step(self) -> Decision | None:
        """A step was made with the loader's batch; a decision where that ended a turn."""
        decision = self.tuner.step(self._meters.stats)
        self.last = self.last if decision is None else decision
        return decision

    def follow(self, turned: Callable[[Decision], None]) -> None:
        """From `resume` on its loader tells it of every step; `turned` gets the decision where that ended a turn.

        As few calls as can be: each costs a microsecond or two once a step of the model has emptied the caches.
        """
        step, read = self.tuner.step, self._meters.stats

        def tell() -> None:
            decision = step(read)
            if decision is not None:
                self.last = decision
                turned(decision)
                self.tuner.spent(self._meters.clock() - decision.time_s)

        self._tell = tell

    def leave(self) -> None:
        """Its loader tells it of nothing any more: whatever it is used for next is not of this run."""
        self.loader.on_step = None

    def pause(self) -> None:
        """Its phase stands still from here on, even if its loader is used in another."""
        self.leave()
        self._meters.pause()

    def resume(self) -> None:
        """Its phase goes on where `pause` found it."""
        self._meters.resume()
        self.loader.on_step = self._tell

    def whole(self) -> FlowStats:
        """The window from its first `resume` to here."""
        return self._meters.stats().since(self._meters.begun)


@final
class _Meters(SharedBudget):
    """A loader's meters, its part of the machine, and a clock, all less what was counted during pauses."""

    def __init__(self, loader: ElasticLoader[Any], budget: SharedBudget, wall: Callable[[], float]) -> None:
        self.begun = loader.stats()
        self._loader, self._budget, self._wall = loader, budget, wall
        self._lost_s = self._lost_busy_s = 0.0
        self._lost: FlowStats | None = None
        self._paused: tuple[float, FlowStats, float] | None = None
        self.pause()

    def clock(self) -> float:
        """Seconds of the phase."""
        return self._wall() - self._lost_s

    def stats(self) -> FlowStats:
        """The loader's meters."""
        stats = self._loader.stats()
        return stats if self._lost is None else stats.since(self._lost)

    def read(self) -> BudgetReading:
        """The budget, as a tuner reads it: what everybody's jobs used is a counter, and is paused too."""
        reading = self._budget.read()
        if reading.host_busy_s <= 0:  # not known
            return reading
        return replace(reading, host_busy_s=max(1e-9, reading.host_busy_s - self._lost_busy_s))

    def tell(self, demand: Demand) -> None:
        self._budget.tell(demand)

    def rest(self) -> None:
        self._budget.rest()

    def own(self, window: FlowStats) -> FlowStats:
        return self._budget.own(window)

    def pause(self) -> None:
        if self._paused is None:
            self._paused = self.clock(), self.stats(), self.read().host_busy_s
            self.rest()  # the others may have what it leaves

    def resume(self) -> None:
        if self._paused is None:
            return
        (paused_s, before, busy_s), self._paused = self._paused, None
        self._lost_s = self._wall() - paused_s
        self._lost = self._loader.stats().since(before)
        self._lost_busy_s = self._budget.read().host_busy_s - busy_s
