"""Notices that a pipeline is no longer what it was: a stage's cost, the rate, the CPUs or the memory limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, log_ratio, ratio
from lightning_intune.control.best import BestKnown
from lightning_intune.control.model import ServiceModel
from lightning_intune.control.reading import Reading

_IDLE = 0.03
"""Busy for less than this share of its workers' time, a stage is idle."""
_FORGET_ALARMS = 0.8
"""Part of the alarms after moves that is remembered after a turn."""


@final
@dataclass(frozen=True, kw_only=True)
class Noticed:
    """What has changed by this turn."""

    stages: Bools
    """[B, N] cost no longer what it was."""
    whole: Bools
    """[B] budget or rate changed."""
    cpus: Bools
    """[B] another number of CPUs."""


@final
class Shifts:
    """Compares each turn with what was known before it. Holds B pipelines; one thread's.

    Something half as dear again or more is believed when the next turn shows it as well, a doubling at once:
    neighbours and noise come and go.
    """

    def __init__(self, num_pipelines: int, num_stages: int) -> None:
        self.suspicion = np.zeros((num_pipelines, num_stages))
        self.reference = np.zeros((num_pipelines, num_stages))
        """[B, N] seconds per sample expected before the first suspicious turn: the model has learnt from it since."""
        self.doubt = np.zeros(num_pipelines)
        self.alarms = np.zeros(num_pipelines)
        self.last_cpus = np.zeros(num_pipelines)
        self.last_limit = np.zeros(num_pipelines)

    def restart(self, rows: Bools) -> None:
        """Fresh pipelines in the chosen rows."""
        for array in (self.suspicion, self.reference, self.doubt, self.alarms, self.last_cpus, self.last_limit):
            array[rows] = 0.0

    def noticed(
        self, reading: Reading, counted: Floats, knows: Bools, last_widths: Floats, model: ServiceModel, best: BestKnown
    ) -> Noticed:
        """What `reading` shows, beside what `model` and `best` know without it.

        `counted` [B] is what the rate is remembered as; `knows` [B], whether there was a turn to compare with.
        """
        held = (reading.width == last_widths).all(1)
        # What is slow away from the best widths known is first blamed on the widths: they are left, and if the
        # pipeline has changed, the best widths are no longer that good either, which shows in the turn after.
        best_widths, best_rate, _ = best.best(reading.noise)
        away = (reading.width != best_widths).any(1) & (best_rate > 0)
        blamed = away & (counted < best_rate * (1.0 - np.maximum(0.1, 2.0 * reading.noise)))
        stages = self._dearer(reading, knows, held, model) & ~blamed[:, None]
        self.suspicion[stages] = 0.0  # what was blamed on the widths stays suspected
        self.alarms = _FORGET_ALARMS * self.alarms + (stages.any(1) & ~held)
        budget = np.abs(np.log(reading.cpus / np.maximum(self.last_cpus, TINY))) > 0.04
        memory = reading.memory_limit_bytes != self.last_limit
        strange = self._strange(reading, counted, knows, best)
        self.last_cpus, self.last_limit = reading.cpus.copy(), reading.memory_limit_bytes.copy()
        return Noticed(
            stages=stages,
            whole=knows & (budget | memory | (strange & ~blamed)),
            cpus=knows & budget,
        )

    def _dearer(self, reading: Reading, knows: Bools, held: Bools, model: ServiceModel) -> Bools:
        x = np.maximum(reading.samples_per_s, TINY)
        base, slope = model.waits()
        expected = model.cpu_s + base + slope * reading.busy
        expected = np.where(self.suspicion > 0, self.reference, expected)
        # A thread that wakes late has waited for a core before it was busy: what it computed is certain.
        seen = np.maximum(reading.busy - reading.run_delay, reading.cpu) / x[:, None]
        # The work of few workers counts for little, unless they are busy themselves: such a stage limits the others.
        use = ratio(reading.busy, reading.width)
        matters = (reading.busy > 0.05 * reading.busy.max(1, keepdims=True)) | (use > 0.3)
        # A stage that is idle, and was to be, limits nothing: its times are those of waking up, and scatter as such.
        matters &= np.maximum(use, ratio(expected * x[:, None], reading.width)) > _IDLE
        # After a move costs change by contention alone; only a doubling is then a shift of its own. Where one move
        # after the other doubles or halves them (memory reused or not), each takes twice as much to be believed.
        bar = np.where(held, 0.4, 1.0 + self.alarms)
        limit = np.where(held, np.log2(1.3) + 3.0 * reading.noise, 1.0 + self.alarms + 4.0 * reading.noise)
        off = np.abs(log_ratio(seen, expected))
        known = matters & (model.weight > 0.5) & knows[:, None] & reading.is_stage
        self.suspicion = np.where((off > limit[:, None]) & known, self.suspicion + 1.0, 0.0)
        self.reference = expected
        sure = np.minimum(limit + 0.7, bar + 9.0 * reading.noise)
        return (self.suspicion >= 2) | ((off > sure[:, None]) & known)

    def _strange(self, reading: Reading, counted: Floats, knows: Bools, best: BestKnown) -> Bools:
        rate, visits = best.known(reading.width)
        spread = reading.noise * np.sqrt(1.0 + 1.0 / np.maximum(visits, 1.0))
        change = np.where(visits > 0, np.abs(np.log(np.maximum(counted, TINY) / np.maximum(rate, TINY))), 0.0)
        odd = np.maximum(0.2, 4.0 * spread)
        doubted = np.where(change > odd, self.doubt + 1.0, 0.0)
        self.doubt = np.where(knows & (visits > 0), doubted, self.doubt)
        sure = np.minimum(odd + 0.5, np.maximum(0.2, 9.0 * spread))
        strange = knows & ((self.doubt >= 2) | (change > sure))
        self.doubt[strange] = 0.0
        return strange
