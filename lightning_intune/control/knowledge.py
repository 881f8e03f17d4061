"""All that is known of the pipelines after a turn: model, best widths, shifts noticed. Shared by every agent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, clip
from lightning_intune.control.best import BestKnown
from lightning_intune.control.model import ModelSettings, ServiceModel
from lightning_intune.control.proposal import Proposal, propose, useful
from lightning_intune.control.reading import Reading
from lightning_intune.control.reward import RewardSettings, worth
from lightning_intune.control.shifts import Shifts
from lightning_intune.control.step_time import StepTime
from lightning_intune.control.trial import Trial

_PREDICTED = [0, 4, 5]
"""Of the widths weighed after a turn, those whose rate the model is asked for: proposal, present, fewer."""
_ROOM_MARGIN = 0.006
"""Of the buffers' room, left free however often items were measured; 22,000 simulated pipelines kept their limits."""


@final
@dataclass(frozen=True, kw_only=True)
class Situation:
    """What an agent decides from: this turn's reading and everything known before it."""

    reading: Reading
    proposal: Proposal
    predicted: Floats
    """[B] the model's rate at the present widths."""
    predicted_proposal: Floats
    """[B] the model's rate at the proposed widths."""
    cpu_s: Floats
    burstiness: Floats
    wait_base_s: Floats
    wait_slope_s: Floats
    best_widths: Floats
    best_rate: Floats
    rate: Floats
    """[B] mean rate at the present widths, over all turns spent there."""
    visits: Floats
    """[B] how many those are."""
    candidates: Floats
    """[4, B, N] widths weighed as a whole: proposal, lean, rich and the best known."""
    candidate_rate: Floats
    """[4, B] mean rate measured at them, 0 where they were never tried."""
    candidate_visits: Floats
    candidate_crowd: Floats
    """[4, B] threads that would compute beyond the CPUs, over the CPUs."""
    crowd: Floats
    crowd_cost: Floats
    fewer: Floats
    """[B, N] the widths of a `Trial`."""
    predicted_fewer: Floats
    """[B] the model's rate at them."""
    fewer_crowd: Floats
    """[B] `crowd` at them."""
    turns: Floats
    """[B] turns since the start or the last shift noticed, 0 at first."""
    has_shifted: Bools
    inflation: Floats
    """[B] CPU per sample now over the least seen since the last shift: what contention adds."""
    last_widths: Floats
    last_rate: Floats
    lost: Floats
    """[B] share of the turn's time that the trainer lost to slower steps of its own (`StepTime`)."""

    @property
    def is_fresh(self) -> Bools:
        """[B] in the first two turns after a start or a shift, when little is known."""
        return self.turns < 2


@final
class Knowledge:
    """Turns readings into situations: notices shifts, refits the model, remembers rates. One thread's."""

    def __init__(self, num_pipelines: int, num_stages: int, settings: ModelSettings | None = None) -> None:
        self.model = ServiceModel(num_pipelines, num_stages, settings)
        self.best = BestKnown(num_pipelines, num_stages)
        self.step_time = StepTime(num_pipelines)
        self.trial = Trial(num_pipelines, num_stages)
        self.turns = np.zeros(num_pipelines)
        self.last_widths = np.zeros((num_pipelines, num_stages))
        self.last_rate = np.zeros(num_pipelines)
        self.least_used_s = np.zeros(num_pipelines)
        self.others = np.zeros(num_pipelines)
        self.trust = np.ones(num_pipelines)
        self.base_bytes = np.full(num_pipelines, np.inf)
        self.shifts = Shifts(num_pipelines, num_stages)
        self.room_bytes = np.zeros((num_pipelines, num_stages))
        self.room_weight = np.zeros((num_pipelines, num_stages))

    def restart(self, rows: Bools) -> None:
        """Fresh pipelines in the chosen rows: nothing is known of them."""
        self.model.reset(rows)
        self.best.clear(rows)
        self.step_time.reset(rows)
        for array in (
            self.turns,
            self.last_widths,
            self.last_rate,
            self.least_used_s,
            self.room_bytes,
            self.room_weight,
            self.others,
        ):
            array[rows] = 0.0
        self.shifts.restart(rows)
        self.trial.drop(rows)
        self.base_bytes[rows] = np.inf
        self.trust[rows] = 1.0

    def wake(self, rows: Bools) -> None:
        """Keep the model but treat the chosen pipelines as newly shifted."""
        self.best.clear(rows)
        self.step_time.reset(rows)
        self.turns[rows] = 0.0
        self.least_used_s[rows] = 0.0
        self.trust[rows] = 1.0

    def observe(self, reading: Reading) -> Situation:
        """The situation after `reading`."""
        reading = self._smoothed(reading)
        lost = self.step_time.lost(reading, (reading.width == self.last_widths).all(1))
        counted = worth(reading.samples_per_s, lost, RewardSettings())
        knows = (self.turns > 0) & reading.is_valid
        noticed = self.shifts.noticed(reading, counted, knows, self.last_widths, self.model, self.best)
        self.model.reset_stages(noticed.stages)
        self.model.is_closed &= ~noticed.cpus  # how many are too many was found out with other CPUs
        shifted = noticed.stages.any(1) | noticed.whole
        self.wake(shifted)
        self.model.update(reading)
        lost = np.where(shifted, 0.0, lost)
        counted = worth(reading.samples_per_s, lost, RewardSettings())
        self.best.update(reading.width, counted, reading.noise, reading.is_valid)
        best_widths, best_rate, _ = self.best.best(reading.noise)
        self.model.is_closed |= self.trial.end(reading, counted)
        # What was measured to be best stays allowed, whatever the model says.
        most = np.maximum(np.maximum(useful(self.model, reading), best_widths), reading.low)
        reading = replace(reading, high=np.minimum(reading.high, most))
        known = (best_rate > 0)[:, None]
        best_widths = reading.legal(np.where(known, best_widths, reading.width))
        trust = self._trust(reading, best_widths, best_rate)
        proposal = propose(self.model, reading, best_rate, self.turns < 2, trust)
        base, slope = self.model.waits()
        candidates = np.array([proposal.widths, proposal.lean, proposal.rich, best_widths])
        fewer = self.trial.widths(reading, self.model)
        # At once: numpy's price is per call.
        weighed = np.concatenate([candidates, reading.width[None], fewer[None]])
        rates, visits = self.best.known(weighed)
        predicted = self.model.predict(weighed[_PREDICTED], reading.free_cpus)
        crowds = self.model.crowd(weighed, reading.free_cpus)
        situation = Situation(
            candidates=candidates,
            candidate_rate=rates[:4],
            candidate_visits=visits[:4],
            candidate_crowd=crowds[:4],
            crowd=crowds[4],
            crowd_cost=self.model.crowd_cost,
            fewer=fewer,
            predicted_fewer=predicted[2],
            fewer_crowd=crowds[5],
            reading=reading,
            proposal=proposal,
            predicted=predicted[1],
            predicted_proposal=predicted[0],
            cpu_s=self.model.cpu_s,
            burstiness=self.model.burstiness,
            wait_base_s=base,
            wait_slope_s=slope,
            best_widths=best_widths,
            best_rate=best_rate,
            rate=rates[4],
            visits=visits[4],
            turns=self.turns.copy(),
            has_shifted=shifted,
            inflation=self._inflation(reading),
            last_widths=self.last_widths.copy(),
            last_rate=self.last_rate.copy(),
            lost=lost,
        )
        self._remember(reading)
        return situation

    def _trust(self, reading: Reading, best_widths: Floats, best_rate: Floats) -> Floats:
        wider = reading.width.sum(1) > 1.1 * best_widths.sum(1)
        failed = wider & (reading.samples_per_s < 1.02 * best_rate) & reading.is_valid
        self.trust = np.where(failed, np.maximum(0.4 * self.trust, 0.05), self.trust)
        return self.trust.copy()

    def _inflation(self, reading: Reading) -> Floats:
        used = self.model.used_s
        known = (used > 0) & reading.is_valid
        least = np.where(self.least_used_s > 0, np.minimum(self.least_used_s, used), used)
        self.least_used_s = np.where(known, least, self.least_used_s)
        return np.where(known & (self.least_used_s > 0), used / np.maximum(self.least_used_s, TINY), 1.0)

    def _smoothed(self, reading: Reading) -> Reading:
        """The reading with the mean of the item sizes measured so far: they hardly change, their meter does."""
        seen = (reading.room_bytes > 0) & reading.is_valid[:, None]
        weight = np.minimum(self.room_weight, 15.0)
        total = np.where(seen, self.room_bytes * weight + reading.room_bytes, self.room_bytes * weight)
        self.room_weight = weight + seen
        self.room_bytes = total / np.maximum(self.room_weight, 1.0)
        known = np.where(reading.is_stage, self.room_weight, np.inf).min(1)
        error = _ROOM_MARGIN + 0.85 * reading.room_error / clip(known, 1.0, 16.0)
        content = (reading.fill * reading.width * self.room_bytes).sum(1)
        base = reading.memory_bytes - content * (1.0 - error)
        # Freed memory often stays with the process and is used again: the least base seen is the true one, until
        # the limit is exceeded all the same, which says that something else has grown.
        trusted = np.minimum(self.base_bytes, np.where(reading.is_valid, base, np.inf))
        over = reading.memory_bytes > reading.memory_limit_bytes
        self.base_bytes = np.where(over & reading.is_valid, base, trusted)
        held = np.where(np.isfinite(self.base_bytes), self.base_bytes + content, reading.memory_bytes)
        known_others = reading.is_valid & (self.turns > 0)
        others = np.where(known_others, 0.5 * (self.others + reading.others), reading.others)
        self.others = np.where(reading.is_valid, others, self.others)
        return replace(
            reading, memory_bytes=held, others=self.others.copy(), room_bytes=self.room_bytes.copy(), room_error=error
        )

    def _remember(self, reading: Reading) -> None:
        ok = reading.is_valid
        self.turns = self.turns + ok
        self.last_widths = np.where(ok[:, None], reading.width, self.last_widths)
        self.last_rate = np.where(ok, reading.samples_per_s, self.last_rate)
