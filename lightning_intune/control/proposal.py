"""What the service-time model proposes: the least widths for the highest rate that it believes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, ratio
from lightning_intune.control.model import ServiceModel
from lightning_intune.control.reading import Reading

_LIVE_SEARCH, _FLEET_SEARCH = (15, 15, 15, 3), (1,) * 14
"""Rates looked at in each step of a search to 2^-14: many where numpy costs per call, one where it costs per number."""
_TRAINER_REACH = 1.3
_LEVELS = np.array([[2.0, 1.03, 0.04], [1.0, 1.08, 0.1], [0.35, 1.15, 0.15]])
"""Lean, usual, rich: times `cpu_gap`, trainer rates aimed at, headroom (workers beyond the need, as a share)."""


@final
@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the model would do: whole `widths`, the real-valued `need` behind them, and the rate it expects."""

    widths: Floats
    lean: Floats
    """For a rate somewhat further from what CPUs and trainer allow: fewer workers, less contention."""
    rich: Floats
    """For a rate nearer to it."""
    need: Floats
    samples_per_s: Floats
    roofline_samples_per_s: Floats
    """What the CPUs could deliver at the present CPU cost of a sample."""
    rates: Floats
    """[3, B] the rates that lean, usual and rich widths were sized for."""


def useful(model: ServiceModel, reading: Reading) -> Floats:
    """[B, N] the most workers that can be of use at the highest rate that CPUs and trainer allow.

    Workers beyond wait for a core or a lock. Infinite for a stage not metered yet. Of a stage that `is_alone` one more
    than the CPUs: while it is at a hand-over, or a core is lent to another job.
    """
    settings = model.settings
    base, _ = model.waits()
    most = np.minimum(model.roofline(reading.cpus), _TRAINER_REACH / np.maximum(model.trainer_s, TINY))
    need = most[:, None] * (model.cpu_s + base)
    more = settings.useful_more[0] + np.ceil(settings.useful_more[1] * reading.cpus[:, None])
    many = np.where(model.is_alone[:, None], np.ceil(need) + 1.0, np.ceil(settings.useful * need) + more)
    return np.where((model.weight > 0) & (need > 0), many, np.inf)


def propose(model: ServiceModel, reading: Reading, best_rate: Floats, is_fresh: Bools, trust: Floats) -> Proposal:
    """The least widths for the highest rate the model believes in.

    `best_rate` [B] bounds the aim to `reach` times it, except where `is_fresh` [B] (a first look).
    `trust` [B] in (0, 1] shortens the reach where wider widths have disappointed.
    """
    settings = model.settings
    roofline = model.roofline(reading.free_cpus)
    gap = settings.cpu_gap * reading.free_cpus**-settings.cpu_gap_power
    reach = 1.0 + (settings.reach - 1.0) * trust
    reached = reach * np.maximum(best_rate, reading.samples_per_s)
    levels = _LEVELS[:, :, None]
    aim = np.minimum(
        (1.0 - np.minimum(levels[:, 0] * gap, 0.5)) * roofline, levels[:, 1] / np.maximum(model.trainer_s, TINY)
    )
    # Workers are idle everywhere, CPUs are free, and yet the trainer waits: a lock that no meter shows (the GIL
    # outside the stages' functions). More workers only fight for it.
    use = np.where(reading.can_move, ratio(reading.busy, reading.width), 0.0).max(1)
    is_hidden = (use < 0.8) & (reading.wait_share > 0.15) & (reading.cpu_used < 0.85 * reading.free_cpus)
    reached = np.where(is_hidden, np.minimum(settings.hidden_reach / reach, 1.0) * reached, reached)
    aim = np.where(is_fresh & ~is_hidden, aim, np.minimum(aim, reached))
    spare = levels[:, 2] * ~model.is_alone  # nobody starves such a stage
    headroom = np.array([spare, np.zeros_like(spare)])[..., None]
    needs = model.needs(reading.free_cpus)
    roomy, tight = _most(reading, needs, np.array([aim, aim]), headroom)
    # Where bounds or memory limit, headroom for all stages would cost the limiting one its workers.
    is_limited = tight > 1.03 * roomy
    rate = np.where(is_limited, tight, roomy)
    need = needs(rate)
    whole = _whole(need, np.where(is_limited[..., None], 0.0, headroom[0]))
    keeps = (reading.width >= need * 1.02) & (reading.width <= np.ceil(need * settings.band))
    whole = np.where(keeps & ~(is_limited | is_fresh)[..., None], reading.width, whole)
    is_known = (model.weight > 0) & (rate > 0)[..., None]
    legal = reading.legal(np.where(is_known, whole, reading.width))
    lean, usual, rich = legal
    # The last percents of the CPUs take many threads: worth it only where threads cost little.
    cost = 1.0 + model.crowd_cost * model.crowd(legal, reading.free_cpus)
    value = rate / cost
    is_leaner = (value[0] > value[1] * (1.0 + settings.level_margin))[:, None]
    is_richer = (value[2] > value[1] * (1.0 + settings.level_margin))[:, None] & ~is_fresh[:, None]
    usual = np.where(is_leaner, lean, np.where(is_richer, rich, usual))
    return Proposal(
        widths=usual,
        lean=lean,
        rich=rich,
        need=need[1],
        samples_per_s=rate[1],
        roofline_samples_per_s=roofline,
        rates=rate,
    )


def _most(reading: Reading, needs: Callable[[Floats], Floats], aim: Floats, headroom: Floats) -> Floats:
    # The highest rates up to `aim` [..., B] whose widths stay within bounds and memory.
    room = reading.buffer_budget_bytes(reading.room_error)
    high_widths = np.where(reading.is_stage, reading.high, np.inf)
    room_bytes = np.where(reading.room_bytes > 0, reading.room_bytes, TINY)

    def fits(rate: Floats) -> Bools:
        whole = np.minimum(_whole(needs(rate), headroom), 1e9)
        return (whole <= high_widths).all(-1) & ((whole * room_bytes).sum(-1) <= room)

    # Mostly neither bounds nor memory limit, and one look is enough.
    low = np.where(fits(aim), aim, 0.0)
    if bool((low == aim).all()):
        return low
    part = aim - low
    for num_rates in _LIVE_SEARCH if reading.num_pipelines == 1 else _FLEET_SEARCH:
        part = part / (num_rates + 1)
        rates = low + part * np.arange(1, num_rates + 1).reshape(-1, *[1] * aim.ndim)
        low = low + part * fits(rates).sum(0)  # what fits at one rate fits at all lower ones
    return low


def _whole(need: Floats, headroom: Floats | float) -> Floats:
    return np.maximum(1.0, np.ceil(need * (1.0 + headroom)))
