"""When a turn begins and ends: settle after a resize, measure, decide."""

from __future__ import annotations

import math
from enum import Enum
from typing import Literal, final

from lightning_intune.errors import ConfigError

MIN_STEPS = 4
_AUTO_SHORTEST_S, _AUTO_LONGEST_S = 0.5, 2.0
_AUTO_ERROR = 0.04
"""`auto` ends a turn once the rate's relative standard error is below this."""
_AUTO_CHANGE = 0.1
"""A pipeline at rest has its turn ended by steps that take this share more or less than those of the turn before."""
_COSTS_APART, _COSTS_APART_UNHURRIED = 160.0, 400.0
"""`auto` leaves at least so many times between turns as the cheaper of the last two took: 0.6 %, up to 12 ms each.

0.25 %, up to 5 ms each, while training waits so little for data that there is next to nothing to gain.
"""
_LOOKS_APART = 0.1
"""Intervals between two looks at whether a turn that is long enough may end."""


class Phase(Enum):
    """What the present training step means to the tuner."""

    SETTLING = "settling"
    MEASURING = "measuring"
    DUE = "due"
    STARTS = "starts"


@final
class TurnTimer:
    """Counts training steps and their times in O(1) per step; decides when a turn starts and is due.

    A turn starts when the asked widths are live and some steps have flushed what was in flight before,
    waits at most two intervals for that, and is due after `interval_s` and at least 4 steps (or 6 intervals,
    with what there is). With "auto" it is due when the steps seen give a confident rate, after 0.5 s to 2 s, and not
    before it is 160 times as long as turns take (`spent`), 400 times while training hardly waits; at rest
    after 2 s, as there is little to decide and every turn costs, or as soon as steps take another time than before.
    """

    def __init__(self, interval_s: float | Literal["auto"]) -> None:
        if interval_s != "auto" and not (math.isfinite(interval_s) and interval_s > 0):
            raise ConfigError(f"tuner: turn_interval_s={interval_s} is no time. Give seconds above 0, or 'auto'.")
        self._is_auto = interval_s == "auto"
        self.interval_s = _AUTO_SHORTEST_S if interval_s == "auto" else float(interval_s)
        self._usual_s: float | None = None
        self._cost_s = 0.0
        self.restart(None)

    def restart(self, now_s: float | None, flush_steps: int = 2) -> None:
        """Settle anew from `now_s` on (None: from the next step)."""
        self._settle_since, self._flush_left = now_s, flush_steps
        self._started_s: float | None = None
        self._last_s = self._look_s = self._square_s = 0.0
        self._num_steps = 0

    def measure(self, now_s: float, *, rests: bool = False) -> None:
        """The turn's measurement begins now; with `rests` nothing is expected to change, and it goes on from a turn."""
        self._usual_s = self._mean_s() if rests else None
        self._started_s = self._last_s = now_s
        self._look_s = now_s + self.interval_s
        self._num_steps, self._square_s = 0, 0.0

    def tick(self, now_s: float) -> Phase:
        """Called once per training step."""
        if self._started_s is None:
            return self._settle(now_s)
        step_s, self._last_s = now_s - self._last_s, now_s
        self._num_steps += 1
        self._square_s += step_s * step_s
        if now_s < self._look_s:  # as nearly every step has it: this much and no more is paid by each
            return Phase.MEASURING
        self._look_s = now_s + _LOOKS_APART * self.interval_s if self._num_steps >= MIN_STEPS else now_s
        return Phase.DUE if self._is_due(now_s - self._started_s) else Phase.MEASURING

    def spent(self, cost_s: float, *, waits: bool = True) -> None:
        """A turn took that much of the training thread, decision and log. The first also imports and opens files.

        `waits`: whether training waited for data in it.
        """
        if self._is_auto:
            apart = _COSTS_APART if waits else _COSTS_APART_UNHURRIED
            dear_s = apart * min(self._cost_s, cost_s)
            self.interval_s = min(max(_AUTO_SHORTEST_S, dear_s), _AUTO_LONGEST_S)
            self._cost_s = cost_s

    def settle_timed_out(self, now_s: float) -> bool:
        """Whether the asked widths have been waited for long enough (4 intervals)."""
        return self._settle_since is not None and now_s - self._settle_since > 4.0 * self.interval_s

    def error(self) -> float:
        """Relative standard error of the rate over the steps of this turn; 1 with fewer than 2 steps."""
        mean_s = self._mean_s()
        if self._num_steps < 2 or mean_s <= 0:
            return 1.0
        variance = max(0.0, self._square_s - self._num_steps * mean_s**2) / (self._num_steps - 1)
        return math.sqrt(variance / self._num_steps) / mean_s

    def _settle(self, now_s: float) -> Phase:
        if self._settle_since is None:
            self._settle_since = now_s
        self._flush_left -= 1
        waited = now_s - self._settle_since
        return Phase.STARTS if self._flush_left <= 0 or waited >= 2.0 * self.interval_s else Phase.SETTLING

    def _mean_s(self) -> float:
        begun_s = self._last_s if self._started_s is None else self._started_s
        return (self._last_s - begun_s) / max(1, self._num_steps)

    def _is_due(self, turn_s: float) -> bool:
        if turn_s >= 6.0 * self.interval_s:
            return True
        if self._num_steps < MIN_STEPS:
            return False
        if not self._is_auto:
            return True  # nobody looks before the interval is over
        if turn_s >= _AUTO_LONGEST_S:
            return True
        return self.error() <= _AUTO_ERROR if self._usual_s is None else self._is_unusual(self._usual_s)

    def _is_unusual(self, usual_s: float) -> bool:
        mean_s = self._mean_s()
        return abs(mean_s - usual_s) > max(_AUTO_CHANGE * usual_s, 3.0 * self.error() * mean_s)
