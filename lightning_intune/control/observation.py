"""What the network sees: dimensionless numbers, so that one policy serves any machine and any pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, log_ratio, ratio
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


@final
@dataclass(frozen=True, kw_only=True)
class Observation:
    """`stages` [B, N, 25] and `whole` [B, 37], about in [-1, 1], with the mask of real stages [B, N]."""

    stages: Floats
    whole: Floats
    is_stage: Bools


def observe(situation: Situation, *, plain: bool = False) -> Observation:
    """The observation of a situation; `plain` blanks everything that comes from the model."""
    stages = np.stack(_stage_columns(situation), axis=-1)
    whole = np.stack(_whole_columns(situation), axis=-1)
    is_stage = situation.reading.is_stage
    stages = np.where(is_stage[..., None], np.nan_to_num(stages), 0.0)
    if plain:
        stages[..., [name in MODEL_FEATURES for name in STAGE_FEATURES]] = 0.0
        whole[..., [name in MODEL_FEATURES for name in GLOBAL_FEATURES]] = 0.0
    return Observation(stages=np.clip(stages, -4, 4), whole=np.clip(np.nan_to_num(whole), -4, 4), is_stage=is_stage)


def _stage_columns(situation: Situation) -> list[Floats]:
    r, p = situation.reading, situation.proposal
    cpus = r.free_cpus[:, None]
    width = np.maximum(r.width, TINY)
    moved = np.where(situation.last_widths > 0, log_ratio(r.width, situation.last_widths, 2.0), 0.0)
    need = np.minimum(p.need, 1e4)
    use = ratio(r.busy, r.width)
    locked = situation.wait_slope_s * r.busy
    alone = situation.cpu_s + situation.wait_base_s + locked
    free = np.maximum(r.memory_limit_bytes - r.memory_bytes, 1.0)[:, None]
    position = np.arange(r.num_stages)[None, :] / np.maximum(r.is_stage.sum(1) - 1, 1)[:, None]
    is_bottleneck = (use >= use.max(1, keepdims=True) - 1e-9).astype(np.float64)
    return [
        np.log2(np.maximum(r.width, 1.0)) / 7.0, log_ratio(r.width, cpus, 7.0) / 4.0,
        use, r.starved / width, r.blocked / width, 2.0 * ratio(r.run_delay, r.busy), r.cpu / cpus,
        ratio(r.cpu, r.busy), r.fill,
        log_ratio(p.widths, r.width), np.clip(p.widths - r.width, -4, 4) / 4.0,
        log_ratio(situation.best_widths, r.width), np.clip(situation.best_widths - r.width, -4, 4) / 4.0,
        moved, ratio(situation.proposal.samples_per_s[:, None] * alone, r.width).clip(0, 3),
        ratio(need, p.widths), ratio(locked, alone), ratio(situation.wait_base_s, alone), is_bottleneck,
        np.clip(p.widths - need, -1, 2), log_ratio(r.high, r.width) / 4.0,
        np.clip(r.room_bytes / free, 0.0, 2.0), np.broadcast_to(position, r.width.shape),
        np.clip(p.rich - r.width, -4, 4) / 4.0, np.clip(p.lean - r.width, -4, 4) / 4.0,
    ]  # fmt: skip


def _whole_columns(situation: Situation) -> list[Floats]:
    r, p = situation.reading, situation.proposal
    x = r.samples_per_s
    limit = np.where(np.isfinite(r.memory_limit_bytes), r.memory_limit_bytes, np.inf)
    effect = np.where(situation.last_rate > 0, log_ratio(x, situation.last_rate, 2.0), 0.0)
    return [
        np.log2(r.free_cpus) / 7.0, r.is_stage.sum(1) / 10.0, r.wait_share, r.cpu_used / r.free_cpus,
        r.memory_bytes / limit,
        log_ratio(x, p.roofline_samples_per_s), 4.0 * log_ratio(situation.rate, situation.best_rate, 1.0),
        log_ratio(situation.predicted_proposal, x), 2.0 * log_ratio(situation.predicted, x, 2.0),
        np.minimum(situation.turns, 10.0) / 10.0, 5.0 * r.noise, effect,
        2.0 * np.log2(np.maximum(situation.inflation, 1.0)), situation.burstiness,
        np.minimum((r.width * ratio(r.cpu + r.run_delay, r.busy)).sum(1) / r.free_cpus, 8.0) / 4.0,
        np.minimum(situation.crowd, 4.0), 4.0 * situation.crowd_cost,
        *(4.0 * log_ratio(situation.candidate_rate, np.broadcast_to(situation.rate, (4, len(x))), 1.0)),
        *(np.minimum(situation.candidate_visits, 8.0) / 4.0), np.minimum(situation.visits, 8.0) / 4.0,
        *log_ratio(situation.candidates.sum(-1), np.broadcast_to(r.width.sum(1), (4, len(x)))),
        *np.minimum(situation.candidate_crowd, 4.0),
        *(4.0 * log_ratio(p.rates, np.broadcast_to(situation.rate, p.rates.shape), 1.0)),
    ]  # fmt: skip
