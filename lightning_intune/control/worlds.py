"""Random pipelines: the ranges that training draws from, and the wider, harder ones it is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from lightning_intune.control.arrays import Floats
from lightning_intune.control.oracle import best_widths
from lightning_intune.control.world import CONTENTIONS, CROWDS, HELD_OUT, ONLY_TRAINED, TRAINED, Shift, World


@final
@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What random pipelines may look like. Pairs are [low, high] of a uniform or log-uniform draw."""

    stages: tuple[int, int] = (2, 6)
    cpus: tuple[float, float] = (2.0, 128.0)
    cost_spread: float = 1.2
    """Standard deviation of log CPU cost over the stages of one pipeline."""
    noise: tuple[float, float] = (0.02, 0.15)
    contentions: tuple[str, ...] = TRAINED
    contention_strength: float = 0.4
    shift_chance: float = 0.6
    shift_turns: tuple[int, int] = (4, 16)
    cost_factor: tuple[float, float] = (0.3, 4.0)
    cpus_factors: tuple[float, ...] = (0.5, 0.5, 0.75, 2.0)


TRAINING = Ranges(
    cpus=(1.0, 192.0),
    cost_spread=1.4,
    contentions=TRAINED + ONLY_TRAINED + CROWDS[:2],
    contention_strength=0.5,
    shift_chance=0.7,
    shift_turns=(3, 15),
    cost_factor=(0.25, 5.0),
    cpus_factors=(0.3, 0.5, 0.75, 2.0, 2.5),
)
FULL = Ranges(stages=(2, 10))
"""Milder than training, with pipelines of up to 10 stages."""
FULL_CROWDED = replace(FULL, contentions=TRAINED + CROWDS[:2])
"""The same, where threads beyond the CPUs cost more."""
HARD = Ranges(
    stages=(2, 10),
    cost_spread=1.5,
    contentions=TRAINED + HELD_OUT,
    shift_turns=(3, 14),
    cost_factor=(0.2, 6.0),
    cpus_factors=(0.25, 0.5, 3.0),
)
"""Ranges, dynamics and three kinds of contention that training never showed."""
CROWDED = replace(HARD, contentions=HARD.contentions + CROWDS)
"""The same, where threads beyond the CPUs cost more, by one more kind of contention that training never showed."""

_CROWD_CHANCE = 0.4
_CROWD_SCALE = np.array([1.25, 2.0, 4.0])
"""At a strength of 0.4, CPU per batch at 5 threads per CPU: 2.2 times (`crowding`) and 2.4 times (`thrash`).

Measured on two busy cores, threads per CPU: hashing alone 1.0 times (8) and 1.1 (20); sessions read and made batches
1.1 (5) and 1.3 (10, 20); numba over arrays of megabytes 1.1 (2), 3.1 (4), 3.3 (8) and 3.7 (20): a cliff.
"""


def draw_worlds(rng: np.random.Generator, num: int, ranges: Ranges, max_stages: int) -> World:
    """`num` random pipelines padded to `max_stages`; the same generator state gives the same pipelines."""
    shape = (num, max_stages)
    stages = rng.integers(ranges.stages[0], min(ranges.stages[1], max_stages) + 1, num)
    is_stage = np.arange(max_stages)[None, :] < stages[:, None]
    cpus = np.round(_log_uniform(rng, ranges.cpus, (num,)))
    cpu_s = 0.01 * np.exp(rng.normal(0.0, ranges.cost_spread, shape)) * _log_uniform(rng, (0.3, 3.0), (num,))[:, None]
    latency_s = cpu_s * _log_uniform(rng, (0.3, 30.0), shape) * _some(rng, shape, 0.25)
    cpu_s = np.where((latency_s > 0) & (rng.random(shape) < 0.5), 0.1 * cpu_s, cpu_s)
    is_python = _some(rng, (num,), 0.25)[:, None]
    # A GIL share is drawn so that the lock limits somewhere between a fifth and five times the CPUs.
    gil_share = np.clip(_log_uniform(rng, (0.2, 5.0), shape) / cpus[:, None], 0.0, 1.0)
    lock_share = _log_uniform(rng, (0.001, 0.05), shape) * _some(rng, shape, 0.2)
    strengths = _contention(rng, num, ranges)
    mask = is_stage.astype(np.float64)
    world = World(
        is_stage=is_stage,
        cpu_s=cpu_s * mask,
        latency_s=latency_s * mask,
        gil_share=gil_share * _some(rng, shape, 0.6) * is_python * mask,
        lock_s=lock_share * (cpu_s + latency_s) * mask,
        jitter=rng.uniform(0.0, 1.0, shape) * mask,
        buffer_items=rng.integers(1, 9, shape).astype(np.float64) * mask,
        under_metered=rng.uniform(0.1, 0.9, shape) * _some(rng, shape, 0.1) * mask,
        room_bytes=_log_uniform(rng, (1e5, 5e7), shape) * mask,
        high=np.maximum(4.0, np.round(cpus * _log_uniform(rng, (1.0, 4.0), (num,))))[:, None] * mask,
        trainer_s=np.full(num, 1e-9),
        trainer_cpu_s=cpu_s.sum(1) * rng.uniform(0.0, 0.3, num) * _some(rng, (num,), 0.5),
        cpus=cpus,
        others=cpus * rng.uniform(0.05, 0.5, num) * _some(rng, (num,), 0.3),
        gil_hidden=rng.uniform(0.0, 1.0, num),
        burstiness=_log_uniform(rng, (0.05, 0.6), (num,)),
        base_bytes=_log_uniform(rng, (2e8, 4e9), (num,)),
        limit_bytes=np.full(num, np.inf),
        noise=_log_uniform(rng, ranges.noise, (num,)),
        contention=strengths,
    )
    return _with_limits(rng, _crowded(rng, world, ranges))


def draw_shifts(rng: np.random.Generator, world: World, ranges: Ranges) -> Shift:
    """For each pipeline: nothing, a stage whose cost changes, or another number of CPUs, at a random turn."""
    num, max_stages = world.is_stage.shape
    happens = rng.random(num) < ranges.shift_chance
    is_cost = rng.random(num) < 0.6
    stage = (rng.random(num) * world.is_stage.sum(1)).astype(np.int64)
    chosen = (np.arange(max_stages)[None, :] == stage[:, None]) & is_cost[:, None]
    factor = _log_uniform(rng, ranges.cost_factor, (num,))[:, None]
    cpus_factor = rng.choice(np.array(ranges.cpus_factors), num)
    return Shift(
        turn=np.where(happens, rng.integers(ranges.shift_turns[0], ranges.shift_turns[1] + 1, num), -1).astype(float),
        cpu_factor=np.where(chosen, factor, 1.0),
        latency_factor=np.where(chosen, factor, 1.0),
        cpus_factor=np.where(is_cost, 1.0, cpus_factor),
    )


def _with_limits(rng: np.random.Generator, world: World) -> World:
    # A trainer and a memory limit mean something only beside the best rate and the best widths.
    widths, rate = best_widths(world)
    num = world.num_pipelines
    trainer_s = _log_uniform(rng, (0.3, 1.6), (num,)) / np.maximum(rate, 1e-9)
    is_fast = rng.random(num) < 0.4
    needed = (widths * world.room_bytes).sum(1)
    least = (world.is_stage * world.room_bytes).sum(1)
    spare = needed * _log_uniform(rng, (0.5, 2.0), (num,))
    limit = world.base_bytes + np.maximum(1.3 * least, np.where(rng.random(num) < 0.2, spare, 8.0 * needed))
    kept = {name: getattr(world, name) for name in World.__dataclass_fields__}
    kept["trainer_s"] = np.where(is_fast, 0.01 / np.maximum(rate, 1e-9), trainer_s)
    kept["trainer_cpu_s"] = np.minimum(world.trainer_cpu_s, kept["trainer_s"])
    kept["limit_bytes"] = limit
    return World(**kept)


def _crowded(rng: np.random.Generator, world: World, ranges: Ranges) -> World:
    # Drawn last, and only where asked for: without it pipelines are what they were before there was such a thing.
    if not any(name in ranges.contentions for name in CROWDS):
        return world
    shape = (world.num_pipelines, len(CROWDS))
    allowed = np.array([name in ranges.contentions for name in CROWDS], dtype=np.float64)
    strengths = rng.uniform(0.0, ranges.contention_strength, shape) * _some(rng, shape, _CROWD_CHANCE)
    strengths *= allowed * _CROWD_SCALE
    # Native code, too, holds the GIL between its calls: little, but with a core to wait for it is long.
    light = _log_uniform(rng, (0.005, 0.1), world.is_stage.shape) * world.is_stage
    is_light = (strengths[:, 1] > 0) & (world.gil_share.sum(1) == 0)
    return replace(
        world,
        contention=np.concatenate([world.contention[:, : -len(CROWDS)], strengths], axis=1),
        gil_share=np.where(is_light[:, None], light, world.gil_share),
    )


def _contention(rng: np.random.Generator, num: int, ranges: Ranges) -> Floats:
    others = CONTENTIONS[: -len(CROWDS)]
    allowed = np.array([name in ranges.contentions for name in others], dtype=np.float64)
    has_more = any(name in ranges.contentions for name in ONLY_TRAINED)
    many = len(others) if has_more else len(others) - len(ONLY_TRAINED)
    present = np.zeros((num, len(others)), dtype=np.bool_)
    strength = np.zeros((num, len(CONTENTIONS)))
    present[:, :many] = rng.random((num, many)) < 0.4
    strength[:, :many] = rng.uniform(0.0, ranges.contention_strength, (num, many))
    scale = np.array([1.0, 0.5, 1.0, 1.0, 0.1, 1.0, 0.4, 1.0])
    strength[:, : len(others)] *= present * allowed * scale
    return strength


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...]) -> Floats:
    return np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]), shape))


def _some(rng: np.random.Generator, shape: tuple[int, ...], chance: float) -> Floats:
    return (rng.random(shape) < chance).astype(np.float64)
