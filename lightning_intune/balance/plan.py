"""A round's plan: the rank and the step of every sample that the ranks have read. Pure functions of the costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_intune.balance.division import (
    bubble,
    check_costs,
    even_counts,
    loads,
    partition_by_cost,
    partition_padded,
    rebalance,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mode = Literal["off", "local", "reservoir", "global"]

TOLERANCE = 3e-4  # of a rank's mean load: excess that is not worth a move
_SMALL = 4096  # samples below which a plan from scratch is tried beside the swaps: they have few to choose from
MIN_OFFERED = 32
"""Samples that a rank offers for swaps per round, in mode `reservoir`, where they are enough."""
_TOO_MUCH = 1e-3  # a bubble left over a round, from which more samples are offered in the next


def steps_in_order(num_samples: int, batch_size: int) -> Ints:
    """The unbalanced run: sample i belongs to step i // batch_size."""
    return np.arange(num_samples) // batch_size


def steps_of_equal_cost(costs: Floats, batch_size: int) -> Ints:
    """One rank's samples over its steps, `batch_size` each and of equal cost; the last N % batch_size make the last.

    A step's place is that of its earliest sample, so none waits longer than the round.
    """
    num_samples = len(costs)
    num_full = num_samples // batch_size
    steps = steps_in_order(num_samples, batch_size)
    if num_full > 1:
        whole = partition_by_cost(costs[: num_full * batch_size], num_full)
        _, first = np.unique(whole, return_index=True)
        steps[: num_full * batch_size] = np.argsort(np.argsort(first))[whole]
    return steps


def ranks_of_step(costs: Floats, origin: Ints, num_ranks: int, *, equal_count: bool) -> Ints:
    """One global step's samples over the ranks, with few of them leaving the rank `origin` that read them."""
    base = even_counts(origin, num_ranks) if equal_count else origin
    ranks = rebalance(costs, base, num_ranks, max_moved_share=1.0, tolerance=TOLERANCE, equal_count=equal_count)
    if len(costs) <= _SMALL and bubble(loads(costs, ranks, num_ranks)) > TOLERANCE:
        anew = partition_by_cost(costs, num_ranks, equal_count=equal_count)
        if loads(costs, anew, num_ranks).max() < 0.995 * loads(costs, ranks, num_ranks).max():
            return anew
    return ranks


def candidates(costs: Floats, num_offered: int) -> Ints:
    """Which samples of its round a rank offers for swaps: the costliest, and some of every size."""
    if num_offered >= len(costs):
        return np.arange(len(costs))
    order = np.argsort(costs, kind="stable")
    num_spread = num_offered // 2
    spread = np.linspace(0, len(order) - 1 - (num_offered - num_spread), num_spread).astype(np.int64)
    return np.concatenate([order[np.unique(spread)], order[len(order) - (num_offered - num_spread) :]])


def swap_candidates(totals: Floats, offered: Sequence[Floats]) -> tuple[list[Ints], float]:
    """Where each rank's offered samples go, so that the ranks' totals for the round come out equal; the bubble left.

    `totals` [R] are the costs of all samples that a rank has read, `offered[r]` those of its candidates.
    """
    num_ranks = len(totals)
    largest = float(check_costs(totals).max(initial=0.0))
    origin = np.repeat(np.arange(num_ranks), [len(costs) for costs in offered])
    if largest > 0 and len(origin):
        unit = (2**32 - 1) / largest
        units = np.rint(np.concatenate(offered) * unit).astype(np.int64)
        rest = np.rint(totals * unit).astype(np.int64)
        np.subtract.at(rest, origin, units)
        from lightning_intune.balance import kernels  # brings numba along

        origin = kernels.swap(
            units,
            origin,
            num_ranks,
            max_moved=2 * len(origin),
            tolerance=int((rest.sum() + units.sum()) / num_ranks * TOLERANCE / 3),
            fixed=rest,
        )
    targets = np.split(origin, np.cumsum([len(costs) for costs in offered])[:-1])
    rest = totals - np.array([costs.sum() for costs in offered])
    return targets, bubble(rest + loads(np.concatenate(offered), origin, num_ranks))


def num_offered_next(num_offered: int, left: float) -> int:
    """How many samples to offer in the next round, when this one's swaps left a bubble `left`.

    Shards that differ much need more; that shows in the first rounds, and stays.
    >>> num_offered_next(32, 0.01), num_offered_next(32, 0.0001)
    (64, 32)
    """
    return min((8 if left > 100 * _TOO_MUCH else 2) * num_offered, 2**20) if left > _TOO_MUCH else num_offered


def ranks_by_step(
    costs: Sequence[Floats], lengths: Sequence[NDArray[Any]], batch_size: int, *, equal_count: bool, padded: bool
) -> list[Ints]:
    """Of every rank's samples in their order, the rank each goes to: every global step is divided by itself."""
    sizes = [len(part) for part in costs]
    origin = np.repeat(np.arange(len(costs)), sizes)
    steps = np.concatenate([steps_in_order(size, batch_size) for size in sizes])
    all_costs, all_lengths, ranks = np.concatenate(costs), np.concatenate(lengths), origin.copy()
    for step in range(int(steps.max(initial=-1)) + 1):
        here = np.flatnonzero(steps == step)
        if padded:
            ranks[here] = partition_padded(all_lengths[here], len(costs))
        else:
            ranks[here] = ranks_of_step(all_costs[here], origin[here], len(costs), equal_count=equal_count)
    return np.split(ranks, np.cumsum(sizes)[:-1])


def steps_of_held(costs: Sequence[Floats], steps_held: Callable[[Floats], Ints], num_offered: int) -> list[Ints]:
    """Of every rank's samples, the step in which whoever holds it delivers it, in mode `reservoir`."""
    targets = [np.full(len(part), rank) for rank, part in enumerate(costs)]
    offers = [candidates(part, num_offered) for part in costs]
    totals = np.array([part.sum() for part in costs])
    moved, _ = swap_candidates(totals, [part[offer] for part, offer in zip(costs, offers, strict=True)])
    for target, offer, to in zip(targets, offers, moved, strict=True):
        target[offer] = to
    ranks, all_costs = np.concatenate(targets), np.concatenate(costs)
    steps = np.zeros(len(ranks), np.int64)
    for rank in range(len(costs)):
        here = np.flatnonzero(ranks == rank)  # by origin and place, as the holder sorts them
        steps[here] = steps_held(all_costs[here])
    return np.split(steps, np.cumsum([len(part) for part in costs])[:-1])
