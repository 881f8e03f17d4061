"""Bubbles, the share of the ranks' time that is waiting: as planned and as measured, never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class BubbleStats:
    """A window of steps. A bubble is 1 - (sum of the ranks' mean costs) / (sum of their largest), over its steps."""

    first_step: int
    num_steps: int
    planned: float
    """In [0, 1): of the costs that the model foretold."""
    measured: float
    """In [0, 1): of the seconds that the ranks told to `observe`."""
    wait_s: tuple[float, ...]
    """By rank: seconds it waited for the slowest of each step, from the seconds told."""
    waited: int
    """The rank that waited longest."""
    waited_for: int
    """The rank that made the others wait longest, all its steps together."""


@final
class BubbleMeter:
    """Collects every rank's step times into windows of `window` steps or more. One thread at a time."""

    def __init__(self, num_ranks: int, window: int) -> None:
        if window < 1:
            raise ConfigError(f"BubbleMeter: window={window} has no step. Set it to 1 or more.")
        self._num_ranks, self._window = num_ranks, window
        self._seconds: dict[int, dict[int, float]] = {}
        self._planned: dict[int, Sequence[float]] = {}
        self.last: BubbleStats | None = None
        """The latest full window; it may be read by any thread."""

    def plan(self, step: int, costs: Sequence[float]) -> None:
        """What the ranks' work of `step` was planned to cost."""
        self._planned[step] = costs
        while len(self._planned) > 64 * self._window:  # nobody observes
            del self._planned[next(iter(self._planned))]

    def observe(self, rank: int, step: int, seconds: float) -> None:
        """What `step` took on `rank`."""
        if step in self._planned:
            self._seconds.setdefault(step, {})[rank] = seconds

    def close(self, *, at_least: int | None = None) -> None:
        """End the window with the steps that all ranks have told, if they are `at_least` (None: `window`)."""
        full = sorted(step for step, told in self._seconds.items() if len(told) == self._num_ranks)
        if len(full) >= (self._window if at_least is None else at_least):
            self._close(full)

    def _close(self, steps: list[int]) -> None:
        seconds = np.array([[self._seconds[step][rank] for rank in range(self._num_ranks)] for step in steps])
        planned = np.array([self._planned[step] for step in steps])
        slowest = seconds.max(axis=1)
        waits = slowest[:, None] - seconds
        caused = np.zeros(self._num_ranks)
        np.add.at(caused, seconds.argmax(axis=1), waits.sum(axis=1))
        self.last = BubbleStats(
            first_step=steps[0],
            num_steps=len(steps),
            planned=_over_steps(planned),
            measured=_over_steps(seconds),
            wait_s=tuple(waits.sum(axis=0).tolist()),
            waited=int(waits.sum(axis=0).argmax()),
            waited_for=int(caused.argmax()),
        )
        for table in (self._seconds, self._planned):
            for step in [step for step in table if step <= steps[-1]]:
                del table[step]


def _over_steps(costs: np.ndarray) -> float:
    largest = float(costs.max(axis=1).sum())
    return 1.0 - float(costs.mean(axis=1).sum()) / largest if largest > 0 else 0.0
