"""The service-time model: what a sample costs each stage, refitted every turn, and the rate that widths would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, clip, ratio
from lightning_intune.control.physics import queue_shape
from lightning_intune.control.reading import Reading


@final
@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Constants of the fit and the proposal, tuned on simulated pipelines that no figure is reported on."""

    forget: float = 0.75
    """Weight of the past after one turn at an unchanged rate."""
    forget_slope: float = 0.7
    """The same for what waiting is made of, which is another with every neighbour: it is forgotten soon."""
    lock_reach: float = 1.2
    """A lock that carried the last turn's rate carries at least this many times that."""
    reach: float = 1.4
    """Once a first proposal was tried: how far above the best measured rate a proposal may aim."""
    cpu_gap: float = 0.1
    """Share of the roofline left out with one CPU, less with more: its last percents would take many workers."""
    cpu_gap_power: float = 0.3
    prior_burstiness: float = 0.2
    crowd_ridge: float = 0.003
    prior_crowd: float = 0.0
    level_margin: float = 0.01
    least_left: float = 0.3
    """A lock may be in use for at most the rest of the time: beyond, workers mostly wait for it."""
    hidden_reach: float = 1.05
    queue_doubt: float = 0.1
    useful: float = 2.5
    """Most workers per worker that the CPUs and the trainer could keep busy; bursts want more (`useful_more`)."""
    useful_more: tuple[float, float] = (2.0, 0.5)
    """How many more, and how many per CPU."""
    alone: float = 0.9
    """Share of all CPU time, and of its own busy time, that a stage computes which `is_alone`."""
    alone_others: float = 0.005
    """CPU time of the other stages, over its own, below which they do nothing."""
    band: float = 1.3
    """A width between the need and this many times it is left as it is: noise would shake it for nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What follows from the sums, [B, N]: seconds per sample, and the share of its work that a worker computes."""

    cpu_s: Floats
    base_s: Floats
    slope_s: Floats
    computing: Floats


@final
class ServiceModel:
    """Per stage: CPU seconds per sample, waiting seconds per sample, and how waiting grows with busy workers.

    A worker is busy for s = cpu + run_delay + wait, where wait = base + slope * (mean busy workers): the
    slope is what a GIL or a lock costs. Sums are forgotten exponentially, faster when the rate has moved,
    since contention makes costs depend on the operating point. Holds B pipelines; one thread's.
    """

    def __init__(self, num_pipelines: int, num_stages: int, settings: ModelSettings | None = None) -> None:
        self.settings = settings or ModelSettings()
        shape = (num_pipelines, num_stages)
        self.weight = np.zeros(shape)
        self.cpu_sum = np.zeros(shape)
        self.used_sum, self.used_weight = np.zeros(num_pipelines), np.zeros(num_pipelines)
        # Sums of the regression of wait on busy workers: weight, n, wait, n*n, n*wait.
        self.slope_sums = np.zeros((5, *shape))
        # Sums of run delay and of the CPU time that would have it if CPU bursts were memoryless.
        self.queue_sums = np.zeros((2, num_pipelines))
        # Sums of the regression of log CPU per sample on threads beyond the CPUs: weight, o, u, o*o, o*u.
        self.crowd_sums = np.zeros((5, num_pipelines))
        self.last_rate = np.zeros(num_pipelines)
        self.trainer_sum = np.zeros(num_pipelines)
        self.is_closed = np.zeros(num_pipelines, dtype=np.bool_)
        """[B] whether workers wait for cores only because they are so many (`Trial`): then none are needed for that."""
        self._fitted: _Fit | None = None

    def reset(self, rows: Bools) -> None:
        """Forget the chosen pipelines."""
        self._fitted = None
        for array in (self.weight, self.cpu_sum, self.used_sum, self.used_weight):
            array[rows] = 0.0
        self.slope_sums[:, rows] = 0.0
        self.queue_sums[:, rows] = 0.0
        self.crowd_sums[:, rows] = 0.0
        self.last_rate[rows] = 0.0
        self.trainer_sum[rows] = 0.0
        self.is_closed[rows] = False

    def reset_stages(self, stages: Bools) -> None:
        """Forget single stages [B, N], whose costs have shifted, and with them the whole's CPU cost and all slopes.

        A stage waits longer the busier the others are (a disk, a memory bus): its slope was theirs, too.
        """
        self._fitted = None
        for array in (self.weight, self.cpu_sum):
            array[stages] = 0.0
        rows = stages.any(1)
        self.slope_sums[:, rows] = 0.0
        self.crowd_sums[:, rows] = 0.0
        self.used_sum[rows] = self.used_weight[rows] = self.trainer_sum[rows] = 0.0

    def update(self, reading: Reading) -> None:
        """Take in one turn. Turns that are not valid change nothing."""
        ok = reading.is_valid & (reading.samples_per_s > 0)
        x = np.where(ok, reading.samples_per_s, 1.0)[:, None]
        cpu, delay, service = reading.cpu / x, reading.run_delay / x, reading.busy / x
        wait = np.maximum(service - cpu - delay, 0.0)
        moved = np.abs(np.log(np.maximum(x[:, 0], TINY) / np.maximum(self.last_rate, TINY)))
        keep = self.settings.forget * np.exp(-1.5 * np.minimum(moved, 5.0))
        self.last_rate = np.where(ok, x[:, 0], self.last_rate)
        keep, on = np.where(ok, keep, 1.0)[:, None], ok[:, None].astype(np.float64)
        self.weight = self.weight * keep + on
        self.cpu_sum = self.cpu_sum * keep + on * cpu
        self.used_weight = self.used_weight * keep[:, 0] + on[:, 0]
        self.used_sum = self.used_sum * keep[:, 0] + on[:, 0] * reading.cpu_used / x[:, 0]
        self.trainer_sum = self.trainer_sum * keep[:, 0] + on[:, 0] * (1.0 - reading.wait_share) / x[:, 0]
        self._fitted = None
        fade = np.where(ok, self.settings.forget_slope, 1.0)[None, :, None]
        n = reading.busy
        terms = np.array([np.ones_like(n), n, wait, n * n, n * wait])
        self.slope_sums = self.slope_sums * fade + on[None] * terms
        use = np.minimum(reading.cpu_used / reading.free_cpus, 0.98)
        # Near saturation the delay explodes and a noisy `use` says little: hence the weight (1 - use)^2.
        trust = np.where(use < 0.95, (1.0 - use) ** 2, 0.0) / reading.free_cpus
        queued = trust * np.array([reading.run_delay.sum(1), reading.cpu.sum(1) * queue_shape(use, reading.free_cpus)])
        self.queue_sums = self.queue_sums * fade[:, 0, :] + on[:, 0] * queued
        over = self.crowd(reading.width, reading.free_cpus)
        log_used = np.log(np.maximum(reading.cpu_used / x[:, 0], TINY))
        one = np.ones_like(over)
        crowd = np.array([one, over, log_used, over * over, over * log_used])
        self.crowd_sums = self.crowd_sums * np.where(ok, 0.9, 1.0) + ok * crowd

    def refresh(self) -> None:
        """Sums were written from outside (a loaded state): compute anew what follows from them."""
        self._fitted = None

    @property
    def _fit(self) -> _Fit:
        if self._fitted is None:
            cpu_s, (base, slope) = ratio(self.cpu_sum, self.weight), self._fit_waits()
            self._fitted = _Fit(cpu_s=cpu_s, base_s=base, slope_s=slope, computing=ratio(cpu_s, cpu_s + base))
        return self._fitted

    @property
    def cpu_s(self) -> Floats:
        """[B, N] CPU seconds per sample."""
        return self._fit.cpu_s

    @property
    def computing(self) -> Floats:
        """[B, N] the share of its work that a worker computes, the rest being waits that more workers make up for."""
        return self._fit.computing

    @property
    def is_alone(self) -> Bools:
        """[B] whether one stage alone has work, and never waits: as many workers as CPUs then keep all CPUs busy.

        Its workers are no open queue: each has its next item at hand.
        """
        share = ratio(self.cpu_s, np.maximum(self.used_s, self.cpu_s.sum(1))[:, None])
        others = self.cpu_s.sum(1, keepdims=True) - self.cpu_s
        is_it = (share > self.settings.alone) & (self.computing > self.settings.alone)
        return (is_it & (others < self.settings.alone_others * self.cpu_s)).any(1)

    @property
    def used_s(self) -> Floats:
        """[B] CPU seconds per sample of the whole job, which also counts what stage meters miss."""
        return ratio(self.used_sum, self.used_weight)

    @property
    def trainer_s(self) -> Floats:
        """[B] seconds per sample that the trainer itself takes."""
        return ratio(self.trainer_sum, self.used_weight)

    def waits(self) -> tuple[Floats, Floats]:
        """(base [B, N], slope [B, N]): wait seconds per sample = base + slope * busy workers, both >= 0."""
        return self._fit.base_s, self._fit.slope_s

    def _fit_waits(self) -> tuple[Floats, Floats]:
        weight, n, wait, nn, nwait = self.slope_sums
        mean_n, mean_wait = ratio(n, weight), ratio(wait, weight)
        var = np.maximum(ratio(nn, weight) - mean_n**2, 0.0)
        cov = ratio(nwait, weight) - mean_n * mean_wait
        # The ridge (a tenth of mean_n squared) holds the slope at 0 until widths have really differed.
        slope = clip(cov / (var + 0.02 * mean_n**2 + TINY), 0.0, ratio(mean_wait, mean_n))
        # The slope is a guess from few widths, the rate that was carried is not: without this bound a wrong slope
        # foretells less than there is, and what it foretells is proposed.
        carried = (self.settings.lock_reach * np.maximum(self.last_rate, TINY))[:, None]
        slope = np.minimum(slope, (1.0 - self.settings.least_left) / carried)
        return np.maximum(mean_wait - slope * mean_n, 0.0), slope

    @property
    def burstiness(self) -> Floats:
        """[B] run delay over that of memoryless CPU bursts; `prior_burstiness` until CPUs were busy."""
        doubt, prior = self.settings.queue_doubt, self.settings.prior_burstiness
        return clip((self.queue_sums[0] + doubt * prior) / (self.queue_sums[1] + doubt), 0.0, 1.0)

    def crowd(self, widths: Floats, cpus: Floats) -> Floats:
        """[..., B] threads that would compute, beyond the CPUs, over the CPUs; 0 where they are fewer."""
        return np.maximum(0.0, (widths * self._fit.computing).sum(-1) / cpus - 1.0)

    @property
    def crowd_cost(self) -> Floats:
        """[B] share by which CPU per sample grows per `crowd`: what too many threads cost. 0 until it shows."""
        weight, over, used, over2, over_used = self.crowd_sums
        mean_over, mean_used = ratio(over, weight), ratio(used, weight)
        var = np.maximum(ratio(over2, weight) - mean_over**2, 0.0)
        cov = ratio(over_used, weight) - mean_over * mean_used
        return clip(
            (cov + self.settings.crowd_ridge * self.settings.prior_crowd) / (var + self.settings.crowd_ridge), 0.0, 0.5
        )

    def needs(self, cpus: Floats) -> Callable[[Floats], Floats]:
        """A function of a rate [..., B] that gives the mean busy workers [..., B, N] at it, with `cpus` [B].

        Infinite where a lock cannot carry the rate. What does not depend on the rate is computed here, once.
        """
        base, slope = self.waits()
        cpu_s, least = self.cpu_s, self.settings.least_left
        share_s = self.used_s / cpus
        power = np.sqrt(2.0 * (cpus + 1.0)) - 1.0
        open_queue = np.where(self.is_closed | self.is_alone, 0.0, self.burstiness / cpus)

        def need(rate: Floats) -> Floats:
            x = rate[..., None]
            busy = np.minimum(rate * share_s, 1.0 - 1e-6)
            stretch = 1.0 + open_queue * busy**power / (1.0 - busy)  # `queue_shape`, inlined: most of a turn
            left = 1.0 - x * slope
            return np.where(left > least, x * (cpu_s * stretch[..., None] + base) / np.maximum(left, least), np.inf)

        return need

    def predict(self, widths: Floats, cpus: Floats) -> Floats:
        """[..., B] samples/s that `widths` [..., B, N] would give by this model: the least of stages, CPUs, trainer."""
        base, slope = self.waits()
        is_known = (self.weight > 0) & (widths > 0)
        # w = x (cpu + base) / (1 - x slope), solved for x.
        stage = np.where(is_known, widths / np.maximum(self.cpu_s + base + slope * widths, TINY), np.inf).min(-1)
        return np.minimum(np.minimum(stage, self.roofline(cpus)), 1.0 / np.maximum(self.trainer_s, TINY))

    def roofline(self, cpus: Floats) -> Floats:
        """[B] samples/s that `cpus` cores could deliver at the present cost of a sample."""
        return cpus / np.maximum(self.used_s, TINY)
