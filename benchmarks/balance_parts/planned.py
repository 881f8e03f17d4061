"""Plans for 256 ranks x 512 samples: how much of the bubble each method cuts, in how much CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.result import put
from lightning_intune.balance import CostModel, partition_by_cost, rebalance
from lightning_intune.balance.division import bubble, karmarkar_karp, loads, zig_zag
from lightning_intune.balance.plan import (
    MIN_OFFERED,
    candidates,
    num_offered_next,
    steps_of_equal_cost,
    swap_candidates,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_RANKS, BATCH_SIZE, WINDOW = 256, 512, 8
MAX_LENGTH = 4096  # where a model would cut its sequences; the median is 100
WARM_UP = 4  # rounds
SIGMAS = (1.0, 1.5)
COSTS = {
    "linear": CostModel(linear=1.0),
    "mixed": CostModel(linear=1.0, quadratic=1 / 400),  # as a layer of width 400 / 6 would have it
    "quadratic": CostModel(linear=0.0, quadratic=1.0),
}
ORIGIN = np.repeat(np.arange(NUM_RANKS), BATCH_SIZE)
METHODS: dict[str, Callable[[Floats], Ints]] = {
    "random": lambda _: ORIGIN,
    "zig_zag": lambda costs: zig_zag(costs, NUM_RANKS),
    "karmarkar_karp": lambda costs: karmarkar_karp(costs, NUM_RANKS),
    "swaps": lambda costs: rebalance(costs, ORIGIN, NUM_RANKS),
    "lpt": lambda costs: partition_by_cost(costs, NUM_RANKS),
    "lpt_any_count": lambda costs: partition_by_cost(costs, NUM_RANKS, equal_count=False),
}


def draw(rng: np.random.Generator, sigma: float, shape: tuple[int, ...]) -> Ints:
    """Lognormal lengths in [1, MAX_LENGTH], median 100."""
    return np.clip(np.rint(100 * np.exp(sigma * rng.standard_normal(shape))), 1, MAX_LENGTH).astype(np.int64)


def planned(runs: int) -> dict[str, Any]:
    """`planned.{sigma}-{cost}.{method}`: medians over `runs` draws, every method on the same ones, in turn."""
    rng = np.random.default_rng(0)
    for method in METHODS.values():
        method(np.ones(NUM_RANKS * BATCH_SIZE))  # compiled before it is timed
    figures: dict[str, Any] = {}
    for sigma in SIGMAS:
        for name, model in COSTS.items():
            seen: dict[str, list[tuple[float, float, float, float]]] = {method: [] for method in METHODS}
            for _ in range(runs):
                costs = model(draw(rng, sigma, (NUM_RANKS * BATCH_SIZE,)))
                for method, plan in METHODS.items():
                    began_s = time.thread_time()
                    ranks = plan(costs)
                    plan_ms = (time.thread_time() - began_s) * 1e3
                    left = bubble(loads(costs, ranks, NUM_RANKS))
                    before = bubble(loads(costs, ORIGIN, NUM_RANKS))
                    seen[method].append((left, 1 - left / before, plan_ms, float((ranks != ORIGIN).mean())))
            figures[f"{sigma}-{name}"] = {method: _medians(rows) for method, rows in seen.items()}
    return figures


def _medians(rows: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for key, values in zip(("bubble", "cut", "plan_ms", "moved_share"), zip(*rows, strict=True), strict=True):
        put(figures, key, values)
    return figures


def reservoirs(runs: int) -> dict[str, Any]:
    """`reservoir.{sigma}-{cost}`: what mode `reservoir` does, round by round, all 256 ranks simulated in turn.

    The time is one rank's: choosing candidates, planning the swaps of all ranks, its own steps; over the steps.
    """
    rng = np.random.default_rng(1)
    figures: dict[str, Any] = {}
    for sigma in SIGMAS:
        for name, model in COSTS.items():
            rows: list[tuple[float, float, float, float]] = []
            offered = MIN_OFFERED
            for run in range(runs + WARM_UP):
                costs = model(draw(rng, sigma, (NUM_RANKS * WINDOW * BATCH_SIZE,))).reshape(NUM_RANKS, -1)
                row, offered = _round(costs, offered)
                rows += [row] * (run >= WARM_UP)  # the first ones' offers may be too small, and compile
            put(entry := {}, "cut", [row[0] for row in rows])
            put(entry, "ms_per_step", [row[1] for row in rows])
            put(entry, "moved_share", [row[2] for row in rows])
            put(entry, "max_delay_steps", [row[3] for row in rows])
            figures[f"{sigma}-{name}"] = entry | {"offered_per_rank": offered}
    return figures


def _round(costs: Floats, offered: int) -> tuple[tuple[float, float, float, float], int]:
    """A window of all ranks: (cut, ms per step of one rank, share moved, largest delay), and what to offer next."""
    began_s = time.thread_time()
    offers = [candidates(part, offered) for part in costs]
    each_s = (time.thread_time() - began_s) / NUM_RANKS
    began_s = time.thread_time()
    targets, left = swap_candidates(costs.sum(axis=1), [part[offer] for part, offer in zip(costs, offers, strict=True)])
    swaps_s = time.thread_time() - began_s
    ranks = np.repeat(np.arange(NUM_RANKS), costs.shape[1]).reshape(costs.shape)
    for rank, (offer, target) in enumerate(zip(offers, targets, strict=True)):
        ranks[rank, offer] = target
    step_costs = np.zeros((NUM_RANKS, WINDOW))
    delay, held_s = 0, 0.0
    read_in = np.tile(np.arange(costs.shape[1]) // BATCH_SIZE, NUM_RANKS)
    for rank in range(NUM_RANKS):
        here = np.flatnonzero(ranks.ravel() == rank)
        held = costs.ravel()[here]
        began_s = time.thread_time()
        steps = steps_of_equal_cost(held, BATCH_SIZE)
        held_s += (time.thread_time() - began_s) / NUM_RANKS
        step_costs[rank] = loads(held, steps, WINDOW)
        delay = max(delay, int((steps - read_in[here]).max()))
    before = costs.reshape(NUM_RANKS, WINDOW, BATCH_SIZE).sum(axis=2)
    cuts = [1 - bubble(after) / bubble(plain) for after, plain in zip(step_costs.T, before.T, strict=True)]
    moved = float((ranks != np.arange(NUM_RANKS)[:, None]).mean())
    ms_per_step = (each_s + swaps_s + held_s) / WINDOW * 1e3
    return (float(np.median(cuts)), ms_per_step, moved, float(delay)), num_offered_next(offered, left)
