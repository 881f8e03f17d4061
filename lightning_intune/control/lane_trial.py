"""Where a stage of `method="auto"` runs: moved to processes once when its threads wait for the GIL, back if worse."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.errors import ConfigError
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats, StageStats

_log = logging.getLogger("lightning_intune")

_NUM_BEFORE = 8
"""Turns whose median rate stands for the threads."""


@final
@dataclass(frozen=True, kw_only=True)
class LaneSettings:
    """When threads are taken to wait for the GIL, and what a move must bring. Times are in turns."""

    least_lost: float = 0.3
    """Share of busy time without a core and without waiting for one: for the lock, or for a disk."""
    most_cpu: float = 1.35
    """CPU seconds per second of all thread stages together: one holds the GIL, native calls add a little."""
    least_cpu: float = 0.6
    least_free: float = 0.5
    """CPUs that must be idle: without, processes gain nothing."""
    least_wait: float = 0.1
    """Share of its time that the trainer must wait."""
    num_seen: int = 3
    """Turns that must look so before a move; one that looks otherwise takes one away."""
    num_settle: int = 2
    """Turns that processes may take to start, which do not count."""
    num_judge: int = 3
    least_gain: float = 1.05


@final
class LaneTrial:
    """Watches turns; moves at most one stage at a time and each stage at most once. One thread's.

    A stage that waits for a disk can look like one that waits for the GIL; that is why a move is a trial: the
    rate decides.
    """

    def __init__(self, settings: LaneSettings | None = None) -> None:
        self._settings = settings or LaneSettings()
        self._num_seen: dict[str, int] = {}
        self._rates: list[float] = []
        self._tried: set[str] = set()
        self._on_trial: str | None = None
        self._before, self._turns_left = 0.0, 0
        self._threads = 0

    @property
    def settling(self) -> str | None:
        """The stage whose processes are starting, if there is one: its turns tell nothing of what it will cost."""
        return self._on_trial if self._turns_left >= self._settings.num_judge else None

    def turn(self, window: FlowStats, knobs: Sequence[Knob], cpus: float) -> dict[str, str]:
        """What was moved after this turn, by stage: "process" or "thread"; mostly nothing.

        What is moved is resized too: a process for each CPU, however many threads waited for one lock, and back to
        as many threads as there were.
        """
        movable = {knob.stage: knob for knob in knobs if knob.move is not None}
        if not movable or window.num_samples <= 0:
            return {}
        if self._on_trial is not None:
            return self._judge(window, movable)
        self._rates = [*self._rates, window.samples_per_s][-_NUM_BEFORE:]
        suspect = self._find(window, movable, cpus)
        for stage in window.stages:
            # One busy worker alone waits for no lock: a tuner that tries a single thread again says nothing either way.
            if stage.name == suspect:
                self._num_seen[stage.name] = self._num_seen.get(stage.name, 0) + 1
            elif stage.name in self._num_seen and stage.live_workers > 1:
                self._num_seen[stage.name] = max(0, self._num_seen[stage.name] - 1)
        if suspect is None or self._num_seen[suspect] < self._settings.num_seen:
            return {}
        return self._begin(movable[suspect], cpus)

    def _find(self, window: FlowStats, movable: dict[str, Knob], cpus: float) -> str | None:
        settings, time_s = self._settings, max(window.time_s, 1e-9)
        threads = [stage for stage in window.stages if stage.lane == "thread"]
        lanes_s = sum(stage.cpu_s for stage in window.stages if stage.lane != "thread")
        cpu = sum(stage.cpu_s for stage in threads) / time_s
        used = (window.process_cpu_s + lanes_s) / time_s
        locked = settings.least_cpu <= cpu <= settings.most_cpu and cpus - used >= settings.least_free
        if not locked or window.wait_share < settings.least_wait:
            return None
        candidates = [stage for stage in threads if stage.name in movable and stage.name not in self._tried]
        waiting = [stage for stage in candidates if self._is_waiting(stage, time_s)]
        return max(waiting, key=lambda stage: stage.cpu_s).name if waiting else None

    def _is_waiting(self, stage: StageStats, time_s: float) -> bool:
        lost_s = stage.busy_s - stage.cpu_s - stage.run_delay_s
        return stage.busy_s > 0.5 * time_s and lost_s > self._settings.least_lost * stage.busy_s

    def _begin(self, knob: Knob, cpus: float) -> dict[str, str]:
        assert knob.move is not None
        self._tried.add(knob.stage)
        self._num_seen.clear()
        self._threads = knob.target()
        # Before the move: every worker that takes another item starts a process, which takes a while.
        knob.turn(knob.bounds.clip(max(1, min(self._threads, math.ceil(cpus)))))
        try:
            knob.move("process")
        except ConfigError as error:
            knob.turn(self._threads)
            _log.info("tuner: stage '%s' waits for the GIL but stays in threads: %s", knob.stage, error)
            return {}
        self._on_trial, self._before = knob.stage, float(np.median(self._rates))
        self._rates, self._turns_left = [], self._settings.num_settle + self._settings.num_judge
        return {knob.stage: "process"}

    def _judge(self, window: FlowStats, movable: dict[str, Knob]) -> dict[str, str]:
        assert self._on_trial is not None
        self._turns_left -= 1
        if self._turns_left < self._settings.num_judge:
            self._rates.append(window.samples_per_s)
        if self._turns_left > 0:
            return {}
        stage, self._on_trial = self._on_trial, None
        rates, self._rates = self._rates, []
        if float(np.median(rates)) >= self._settings.least_gain * self._before:
            return {}
        move = movable[stage].move
        assert move is not None
        move("thread")
        movable[stage].turn(self._threads)
        return {stage: "thread"}
