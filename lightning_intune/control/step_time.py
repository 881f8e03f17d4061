"""How much longer the trainer's own part of a step takes than it did at its best: what busy CPUs cost it."""

from __future__ import annotations

from typing import final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats, clip, ratio
from lightning_intune.control.reading import Reading

_TOLERANCE = 0.05
_FORGET = 1.01


@final
class StepTime:
    """Workers that take the trainer's CPUs delay its kernel launches, and the step takes longer, data or no data.

    Seconds per sample outside `next(loader)`, smoothed over turns at the same widths, against the least seen since the
    last shift. Under DDP they hold the waiting for other ranks too, which is nobody's fault here: hence the tolerance,
    and a least that is slowly forgotten. Holds B pipelines; one thread's.
    """

    def __init__(self, num_pipelines: int) -> None:
        self.least_s = np.zeros(num_pipelines)
        self.smooth_s = np.zeros(num_pipelines)

    def reset(self, rows: Bools) -> None:
        """Forget the chosen pipelines."""
        self.least_s[rows] = self.smooth_s[rows] = 0.0

    def lost(self, reading: Reading, held: Bools) -> Floats:
        """[B] the share of the turn's time lost to slower steps, in [0, 1]; `held`: at the widths of the turn before.

        0 where steps are as quick as they were, within 5 % or twice the noise; also where the trainer mostly waits
        for data, whose own time then does not count for much.
        """
        known = reading.is_valid & (reading.samples_per_s > 0)
        own_s = ratio(1.0 - reading.wait_share, reading.samples_per_s)
        self.smooth_s = np.where(
            known, np.where(held & (self.smooth_s > 0), 0.5 * (self.smooth_s + own_s), own_s), self.smooth_s
        )
        least_s = np.where(self.least_s > 0, np.minimum(_FORGET * self.least_s, self.smooth_s), self.smooth_s)
        self.least_s = np.where(known, least_s, self.least_s)
        allowed_s = self.least_s * (1.0 + np.maximum(_TOLERANCE, 2.0 * reading.noise))
        return np.where(known, clip(reading.samples_per_s * (self.smooth_s - allowed_s), 0.0, 1.0), 0.0)
