"""How well the simulator foretells a live pipeline: fitted on half of a sweep, judged on the other half."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from benchmarks.tuner_parts.pipelines import KINDS, Kind, LivePipeline
from benchmarks.tuner_parts.sweep import Swept
from lightning_intune.control import Budget
from lightning_intune.control.neighbours import Neighbours
from lightning_intune.control.physics import solve_rate
from lightning_intune.control.world import CONTENTIONS, World
from lightning_intune.meters import FlowStats


def fidelity(raw: dict[str, Any], quick: bool) -> dict[str, Any]:
    """`fidelity_median_error` over all pipelines, and each pipeline's own."""
    errors: dict[str, list[float]] = {}
    for kind in KINDS:
        swept: Swept = raw[kind.name]["sweep"]
        window, others = _costs(kind, 0.2 if quick else 1.0)
        errors[kind.name] = _errors(_world(kind, window, others), swept)
    everything = [error for found in errors.values() for error in found]
    each = {name: float(np.median(found)) for name, found in errors.items()}
    return {"fidelity_median_error": float(np.median(everything)), "fidelity_by_pipeline": each}


def _costs(kind: Kind, seconds: float) -> tuple[FlowStats, float]:
    pipeline = LivePipeline(kind)
    try:
        pipeline.rate(0.1)
        neighbours, budget = Neighbours(), Budget()
        before = pipeline.read()
        neighbours.observe(before, budget.read())
        pipeline.rate(seconds)
        after = pipeline.read()
        return after.since(before), neighbours.observe(after, budget.read())
    finally:
        pipeline.close()


def _world(kind: Kind, window: FlowStats, others: float) -> World:
    batches = max(1, window.num_batches)
    cpu_s = np.array([[stage.cpu_s / batches for stage in window.stages]])
    waits = [max(0.0, stage.busy_s - stage.cpu_s - stage.run_delay_s) / batches for stage in window.stages]
    zeros = np.zeros_like(cpu_s)
    trainer_cpu_s = max(0.0, window.process_cpu_s / batches - float(cpu_s.sum()))
    return World(
        is_stage=np.ones(cpu_s.shape, dtype=np.bool_),
        cpu_s=cpu_s,
        latency_s=np.array([waits]),
        gil_share=zeros,
        lock_s=zeros,
        jitter=zeros,
        buffer_items=zeros + 2.0,
        under_metered=zeros,
        room_bytes=zeros,
        high=zeros + 64.0,
        trainer_s=np.array([max(kind.trainer_ms / 1e3 * 1.01, 1e-9)]),
        trainer_cpu_s=np.array([trainer_cpu_s]),
        cpus=np.array([Budget().read().cpus]),
        others=np.array([others]),
        gil_hidden=np.zeros(1),
        burstiness=np.zeros(1),
        base_bytes=np.zeros(1),
        limit_bytes=np.array([np.inf]),
        noise=np.array([1e-6]),
        contention=np.zeros((1, len(CONTENTIONS))),
    )


def _errors(world: World, swept: Swept) -> list[float]:
    """Relative errors on every second point, after fitting GIL share, burstiness, crowding and speed on the rest."""
    widths = np.array(list(swept.rates), dtype=np.float64)
    rates = np.array(list(swept.rates.values()))
    fitted, judged = slice(0, None, 2), slice(1, None, 2)
    crowds = ((0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.3), (0.0, 0.7))
    grid = list(product((0.0, 0.3, 0.6, 1.0), (0.0, 0.1, 0.4), crowds, (0.8, 1.0, 1.25)))
    worlds = [_with(world, *setting) for setting in grid]
    errors = [float(np.median(np.abs(_predict(tried, widths[fitted]) / rates[fitted] - 1.0))) for tried in worlds]
    best = worlds[int(np.argmin(errors))]
    points = judged if len(rates) > 1 else fitted
    return list(np.abs(_predict(best, widths[points]) / rates[points] - 1.0))


def _with(world: World, gil: float, burst: float, crowds: tuple[float, float], slower: float) -> World:
    contention = world.contention.copy()
    contention[:, [CONTENTIONS.index("switching"), CONTENTIONS.index("crowding")]] = crowds
    return replace(
        world,
        gil_share=np.full_like(world.cpu_s, gil),
        burstiness=np.array([burst]),
        contention=contention,
        cpu_s=world.cpu_s * slower,
    )


def _predict(world: World, widths: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return solve_rate(world.take(np.zeros(len(widths), dtype=np.int64)), widths)  # one row of the world per setting
