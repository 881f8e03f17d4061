"""A turn with fewer workers: whether those beyond are needed, or only wait for the cores that they take from others."""

from __future__ import annotations

from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats
from lightning_intune.control.model import ServiceModel
from lightning_intune.control.reading import Reading

_COMPUTES = 0.5
"""A stage whose workers compute for less than this share of their work waits for storage, and keeps them."""
_CHEAPER, _NO_LESS = 0.9, 0.97
"""CPU per sample and rate, over those before, that show workers to have been too many."""
_SAME = 0.1
"""Part by which the CPUs left by other jobs may differ in a turn that is compared with the one before."""


@final
class Trial:
    """What a trial with fewer workers is, and what it says. Holds B pipelines; one thread's.

    The service-time model takes workers' waiting for cores for that of an open queue: it comes with the use of the
    CPUs, and more workers make up for it. In a pipeline that is crowded it is their own number that they wait for,
    and what they compute becomes dearer by it (caches, page faults, hand-overs), which costs measured among them hide.
    Which of the two it is, is found out by trying.
    """

    def __init__(self, num_pipelines: int, num_stages: int) -> None:
        self.rate, self.used_s = np.zeros(num_pipelines), np.zeros(num_pipelines)
        """[B] of the pipelines that are on trial: the rate to hold, 0 for others, and CPU seconds per sample before."""
        self.asked = np.zeros((num_pipelines, num_stages))
        self.cpus = np.zeros(num_pipelines)

    @staticmethod
    def widths(reading: Reading, model: ServiceModel) -> Floats:
        """[B, N] workers enough for the present rate if none of them waited for a core."""
        base, _ = model.waits()
        alone = np.maximum(reading.busy - reading.run_delay, reading.cpu)
        alone = np.minimum(alone, reading.samples_per_s[:, None] * (model.cpu_s + base))
        fewer = np.maximum(np.minimum(np.ceil(1.02 * alone), reading.width), 1.0)
        return reading.legal(np.where(model.computing > _COMPUTES, fewer, reading.width))

    def begin(self, rows: Bools, reading: Reading, rate: Floats, asked: Floats) -> None:
        """The chosen pipelines get the widths `asked` [B, N] for a turn, and are to hold `rate` [B]."""
        self.rate = np.where(rows, rate, self.rate)
        self.used_s = np.where(rows, _used_s(reading), self.used_s)
        self.cpus = np.where(rows, reading.free_cpus, self.cpus)
        self.asked = np.where(rows[:, None], asked, self.asked)

    def drop(self, rows: Bools) -> None:
        """No trial of the chosen pipelines is under way."""
        self.rate[rows] = 0.0

    def end(self, reading: Reading, counted: Floats) -> Bools:
        """[B] whether that turn did as well, for clearly less CPU; `counted` [B] is what its rate is remembered as.

        A turn that was not measured decides nothing yet; one at other widths, or with other CPUs, never will.
        """
        same = (reading.width == self.asked).all(1) & (np.abs(reading.free_cpus - self.cpus) <= _SAME * self.cpus)
        is_cheaper = _used_s(reading) < _CHEAPER * self.used_s
        won = (self.rate > 0) & reading.is_valid & same & is_cheaper & (counted >= _NO_LESS * self.rate)
        self.rate = np.where(reading.is_valid, 0.0, self.rate)
        return won


def _used_s(reading: Reading) -> Floats:
    return reading.cpu_used / np.maximum(reading.samples_per_s, TINY)
