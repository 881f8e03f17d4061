"""What the network sees: dimensionless numbers, so that one policy serves any machine and any pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, clip, log_ratio, ratio
from lightning_intune.control.knowledge import Situation

STAGE_FEATURES = (
    "log_width", "log_width_per_cpu", "busy", "starved", "blocked", "run_delay", "cpu_of_cpus", "cpu_of_busy", "fill",
    "log_proposal", "proposal_step", "log_best", "best_step", "log_last_move", "use", "use_at_proposal", "slope_share",
    "wait_share", "is_bottleneck", "rounding", "log_high", "room", "position", "rich_step", "lean_step",
)  # fmt: skip
GLOBAL_FEATURES = (
    "log_cpus", "stages", "trainer_wait", "cpu_used", "memory", "log_rate_over_roofline", "log_rate_over_best",
    "log_proposal_gain", "log_model_error", "turns", "noise", "last_effect",
    "inflation", "burstiness", "oversubscribed", "crowd", "crowd_cost",
    "log_measured_proposal", "log_measured_lean", "log_measured_rich", "log_measured_best",
    "visits_proposal", "visits_lean", "visits_rich", "visits_best", "visits",
    "log_workers_proposal", "log_workers_lean", "log_workers_rich", "log_workers_best",
    "crowd_proposal", "crowd_lean", "crowd_rich", "crowd_best",
    "log_rate_proposal", "log_rate_lean", "log_rate_rich",
)  # fmt: skip
MODEL_FEATURES = frozenset(
    ("log_proposal", "proposal_step", "log_best", "best_step", "rich_step", "lean_step", "use_at_proposal",
     "slope_share", "rounding", "log_rate_over_best", "log_proposal_gain", "log_model_error", "burstiness",
     "crowd", "crowd_cost",
     *(f"{what}_{whose}" for what in ("log_measured", "visits", "log_workers", "crowd", "log_rate")
       for whose in ("proposal", "lean", "rich", "best"))),
)  # fmt: skip
"""What the plain network does not get to see."""
_STAGE_LIMITS = np.array([4.0, 4.0, 4.0, 7.0, 2.0])[:, None, None]
_WHOLE_LIMITS = np.array([4.0, 1.0, 4.0, 2.0, 2.0, *[1.0] * 4, *[4.0] * 4, *[1.0] * 3])[:, None]
"""How far logarithms of ratios go, in the order in which they are computed: at once, as numpy costs per call."""


@final
@dataclass(frozen=True, kw_only=True)
class Observation:
    """`stages` [B, N, 25] and `whole` [B, 37], about in [-1, 1], with the mask of real stages [B, N]."""

    stages: Floats
    whole: Floats
    is_stage: Bools


def observe(situation: Situation, *, plain: bool = False) -> Observation:
    """The observation of a situation; `plain` blanks everything that comes from the model."""
    is_stage = situation.reading.is_stage
    stages = _bounded(np.array(_stage_columns(situation))).transpose(1, 2, 0) * is_stage[..., None]
    whole = _bounded(np.array(_whole_columns(situation))).T
    if plain:
        stages[..., [name in MODEL_FEATURES for name in STAGE_FEATURES]] = 0.0
        whole[..., [name in MODEL_FEATURES for name in GLOBAL_FEATURES]] = 0.0
    return Observation(stages=np.ascontiguousarray(stages), whole=np.ascontiguousarray(whole), is_stage=is_stage)


def _bounded(columns: Floats) -> Floats:
    # Within [-4, 4], 0 for what is not a number.
    return np.where(np.isnan(columns), 0.0, clip(columns, -4.0, 4.0))


def _stage_columns(situation: Situation) -> list[Floats]:
    r, p = situation.reading, situation.proposal
    cpus = r.free_cpus[:, None]
    width = np.maximum(r.width, TINY)
    need = np.minimum(p.need, 1e4)
    locked = situation.wait_slope_s * r.busy
    alone = situation.cpu_s + situation.wait_base_s + locked
    free = np.maximum(r.memory_limit_bytes - r.memory_bytes, 1.0)[:, None]
    position = np.arange(r.num_stages)[None, :] / np.maximum(r.is_stage.sum(1) - 1, 1)[:, None]
    use, delayed, computing, use_at_proposal, rounding, slope_share, wait_share = ratio(
        np.array([r.busy, r.run_delay, r.cpu, p.samples_per_s[:, None] * alone, need, locked, situation.wait_base_s]),
        np.array([r.width, r.busy, r.busy, r.width, p.widths, alone, alone]),
    )
    to_proposal, to_best, to_high, per_cpu, moved = log_ratio(
        np.array([p.widths, situation.best_widths, r.high, r.width, r.width]),
        np.array([r.width, r.width, r.width, np.broadcast_to(cpus, r.width.shape), situation.last_widths]),
        _STAGE_LIMITS,
    )
    is_bottleneck = (use >= use.max(1, keepdims=True) - 1e-9).astype(np.float64)
    return [
        np.log2(np.maximum(r.width, 1.0)) / 7.0, per_cpu / 4.0,
        use, r.starved / width, r.blocked / width, 2.0 * delayed, r.cpu / cpus,
        computing, r.fill,
        to_proposal, clip(p.widths - r.width, -4.0, 4.0) / 4.0,
        to_best, clip(situation.best_widths - r.width, -4.0, 4.0) / 4.0,
        moved, clip(use_at_proposal, 0.0, 3.0),
        rounding, slope_share, wait_share, is_bottleneck,
        clip(p.widths - need, -1.0, 2.0), to_high / 4.0,
        clip(r.room_bytes / free, 0.0, 2.0), np.broadcast_to(position, r.width.shape),
        clip(p.rich - r.width, -4.0, 4.0) / 4.0, clip(p.lean - r.width, -4.0, 4.0) / 4.0,
    ]  # fmt: skip


def _whole_columns(situation: Situation) -> list[Floats]:
    r, p = situation.reading, situation.proposal
    x = r.samples_per_s
    limit = np.where(np.isfinite(r.memory_limit_bytes), r.memory_limit_bytes, np.inf)
    rate, width = situation.rate, r.width.sum(1)
    over_roofline, over_best, gain, error, effect, *logs = log_ratio(
        np.array([x, rate, situation.predicted_proposal, situation.predicted, x, *situation.candidate_rate,
                  *situation.candidates.sum(-1), *p.rates]),
        np.array([p.roofline_samples_per_s, situation.best_rate, x, x, situation.last_rate, *[rate] * 4,
                  *[width] * 4, *[rate] * 3]),
        _WHOLE_LIMITS,
    )  # fmt: skip
    measured, workers, aims = logs[:4], logs[4:8], logs[8:]
    return [
        np.log2(r.free_cpus) / 7.0, r.is_stage.sum(1) / 10.0, r.wait_share, r.cpu_used / r.free_cpus,
        r.memory_bytes / limit,
        over_roofline, 4.0 * over_best, gain, 2.0 * error,
        np.minimum(situation.turns, 10.0) / 10.0, 5.0 * r.noise, effect,
        2.0 * np.log2(np.maximum(situation.inflation, 1.0)), situation.burstiness,
        np.minimum((r.width * ratio(r.cpu + r.run_delay, r.busy)).sum(1) / r.free_cpus, 8.0) / 4.0,
        np.minimum(situation.crowd, 4.0), 4.0 * situation.crowd_cost,
        *(4.0 * log for log in measured),
        *(np.minimum(situation.candidate_visits, 8.0) / 4.0), np.minimum(situation.visits, 8.0) / 4.0,
        *workers,
        *np.minimum(situation.candidate_crowd, 4.0),
        *(4.0 * log for log in aims),
    ]  # fmt: skip
