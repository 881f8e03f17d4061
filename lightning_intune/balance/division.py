"""Which rank gets which sample, so that all have the same work. Every rank comes to the same answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_intune.errors import ConfigError

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]

_REFINED = 1e-5  # of a rank's mean load: what refinement leaves of an excess


def partition_by_cost(costs: ArrayLike, num_ranks: int, *, equal_count: bool = True) -> Ranks:
    """The rank of every sample, such that the costliest rank exceeds the mean as little as can be found fast.

    Costliest first, each sample to the rank with the least so far (LPT; Graham 1969), then swaps between the heaviest
    and the lightest rank. With `equal_count` ranks get N // R or N // R + 1 samples; without it any number. Costs are
    compared at 32 bits of the largest or a little less, so that plans are the same on every machine.

    Shapes: `costs` [N] -> [N] int64 in [0, num_ranks). With fewer samples than ranks some ranks get none. Zero is a
    cost like any other. ValueError for a negative, infinite or NaN cost, ConfigError for `num_ranks` below 1.
    `partition` is another name for it. Source of the idea: FreeScale (arXiv 2604.24073).

    >>> partition_by_cost([5.0, 4.0, 3.0, 2.0], 2)
    array([0, 1, 1, 0])
    """
    units = _units(costs, num_ranks)
    if num_ranks == 1:
        return np.zeros(len(units), np.int64)
    from lightning_intune.balance import kernels  # brings numba along

    ranks = kernels.deal(units, num_ranks, equal_count=equal_count)
    tolerance = int(units.sum() / num_ranks * _REFINED)
    return kernels.swap(
        units, ranks, num_ranks, max_moved=max(64, len(units) // 50), tolerance=tolerance, equal_count=equal_count
    )


partition = partition_by_cost


def rebalance(
    costs: ArrayLike,
    ranks: ArrayLike,
    num_ranks: int,
    *,
    max_moved_share: float = 0.02,
    tolerance: float = 3e-4,
    equal_count: bool = True,
) -> Ranks:
    """`ranks` changed for few samples, such that no rank exceeds the mean load by more than `tolerance` of it.

    Samples are swapped two by two, so every rank keeps its count (without `equal_count` one may also move alone); at
    most `max_moved_share` of them change their rank. Where no swap helps it stops. Errors as in `partition_by_cost`.

    >>> rebalance([4.0, 2.0, 1.0, 1.0], [0, 0, 1, 1], 2, max_moved_share=1.0)
    array([0, 1, 1, 0])
    """
    units, given = _units(costs, num_ranks), np.asarray(ranks, np.int64)
    if given.shape != units.shape or (len(given) and not 0 <= given.min() <= given.max() < num_ranks):
        raise ValueError(f"rebalance: needs one rank below {num_ranks} for each of {len(units)} samples.")
    if num_ranks == 1 or len(units) == 0:
        return given.copy()
    from lightning_intune.balance import kernels  # brings numba along

    return kernels.swap(
        units,
        given,
        num_ranks,
        max_moved=int(max_moved_share * len(units)) if max_moved_share < 1 else 2 * len(units),
        tolerance=int(units.sum() / num_ranks * tolerance),
        equal_count=equal_count,
    )


def even_counts(ranks: ArrayLike, num_ranks: int) -> Ranks:
    """`ranks` with the last samples of ranks that have too many given to those that have too few.

    Every rank then has N // R or N // R + 1.
    >>> even_counts([0, 0, 0, 0, 1], 2)
    array([0, 0, 0, 1, 1])
    """
    evened = np.array(ranks, np.int64)
    counts = np.bincount(evened, minlength=num_ranks)
    floor, num_extra = divmod(len(evened), num_ranks)
    due = np.full(num_ranks, floor)
    due[np.argsort(-counts, kind="stable")[:num_extra]] += 1  # the extra ones stay where most are
    takers = np.repeat(np.arange(num_ranks), np.maximum(due - counts, 0))
    given = [np.flatnonzero(evened == rank)[due[rank] :] for rank in np.flatnonzero(counts > due)]
    if given:
        evened[np.concatenate(given)] = takers
    return evened


def zig_zag(costs: ArrayLike, num_ranks: int) -> Ranks:
    """Samples from the costliest down dealt to ranks 0..R-1, R-1..0, and so on. For comparison.

    >>> zig_zag([5.0, 4.0, 3.0, 2.0], 2)
    array([0, 1, 1, 0])
    """
    from lightning_intune.balance import kernels  # brings numba along

    order = kernels.order_descending(_units(costs, num_ranks))
    there = np.arange(num_ranks)
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.resize(np.concatenate([there, there[::-1]]), len(order))
    return ranks


def karmarkar_karp(costs: ArrayLike, num_ranks: int) -> Ranks:
    """Equal-count differencing: the two plans of widest spread are merged, heaviest on lightest. For comparison.

    Source: Michiels, Korst, Aarts & van Leeuwen (2003), balanced largest differencing.
    >>> karmarkar_karp([5.0, 4.0, 3.0, 2.0], 2)
    array([1, 0, 0, 1])
    """
    import heapq

    units = _units(costs, num_ranks)
    num_samples = len(units)
    from lightning_intune.balance import kernels  # brings numba along

    order = kernels.order_descending(units)
    # Blocks of R successive samples, the last one filled up with samples of no cost that are dropped at the end.
    padded = np.concatenate([order, np.full(-num_samples % num_ranks, num_samples)])
    cost = np.append(units, 0)
    # A partial plan: (-spread, number, loads from the least up, samples of each load as lists of columns).
    plans = [
        (-int(cost[block[0]] - cost[block[-1]]), number, cost[block][::-1], [block[::-1]])
        for number, block in enumerate(padded.reshape(-1, num_ranks))
    ]
    heapq.heapify(plans)
    while len(plans) > 1:
        _, number, loads, columns = heapq.heappop(plans)
        _, _, other_loads, other_columns = heapq.heappop(plans)
        merged = loads + other_loads[::-1]
        turn = np.argsort(merged, kind="stable")
        both = [column[turn] for column in columns] + [column[::-1][turn] for column in other_columns]
        merged = merged[turn]
        heapq.heappush(plans, (-int(merged[-1] - merged[0]), number, merged, both))
    ranks = np.zeros(num_samples + 1, np.int64)
    for column in plans[0][3] if plans else []:
        ranks[column] = np.arange(num_ranks)
    return ranks[:num_samples]


def partition_padded(lengths: ArrayLike, num_ranks: int) -> Ranks:
    """The ranks of samples whose batches are padded: the largest B * max(L)**2 over ranks is least.

    A rank gets a run of the samples sorted by length, so counts vary (scale the loss). The least possible largest cost
    is found by bisection. ValueError for a negative, infinite or NaN length, ConfigError for `num_ranks` below 1.

    >>> partition_padded([4, 2, 2, 2, 2], 2)
    array([0, 1, 1, 1, 1])
    """
    units = _units(lengths, num_ranks)
    from lightning_intune.balance import kernels  # brings numba along

    order = kernels.order_descending(units)
    square = np.asarray(lengths, np.float64)[order] ** 2

    def cuts(bound: float) -> list[int]:
        """Where each rank's run ends, if none may cost more than `bound`."""
        ends, begin = [], 0
        while begin < len(square) and len(ends) < num_ranks:
            most = len(square) if square[begin] == 0 else max(0, int(bound / square[begin]))
            begin = min(len(square), begin + most)
            ends.append(begin)
        return ends

    low, high = 0.0, float(square[0]) * len(square) if len(square) else 0.0
    for _ in range(60):
        middle = (low + high) / 2
        ends = cuts(middle)
        low, high = (low, middle) if not len(square) or (ends and ends[-1] == len(square)) else (middle, high)
    ranks = np.empty(len(square), np.int64)
    ranks[order] = np.searchsorted(cuts(high * (1 + 1e-12)), np.arange(len(square)), side="right")
    return ranks


def loads(costs: ArrayLike, ranks: ArrayLike, num_ranks: int) -> Floats:
    """The sum of costs on each rank, [num_ranks]."""
    weights = np.asarray(costs, np.float64)
    return np.bincount(np.asarray(ranks), weights, num_ranks).astype(np.float64)


def bubble(rank_costs: ArrayLike) -> float:
    """The share of the ranks' time that is waiting: 1 - mean / max; 0.0 where nothing costs anything.

    >>> bubble([4.0, 2.0])
    0.25
    """
    values = np.asarray(rank_costs, np.float64)
    largest = float(values.max()) if len(values) else 0.0
    return 1.0 - float(values.mean()) / largest if largest > 0 else 0.0


def check_costs(costs: ArrayLike) -> Floats:
    """`costs` as [N] float64; ValueError where one is negative, infinite or NaN."""
    values = np.asarray(costs, np.float64)
    if values.ndim != 1:
        raise ValueError(f"costs must be one number per sample, shape [N], and have shape {values.shape}.")
    good = np.isfinite(values) & (values >= 0)
    if not good.all():
        place = int(good.argmin())
        raise ValueError(
            f"sample {place} has cost {values[place]}, and a plan needs finite costs of 0 or more. Mend the lengths or "
            "the cost function."
        )
    return values


def _units(costs: ArrayLike, num_ranks: int) -> NDArray[np.int64]:
    """Costs as integers: of the largest cost's 32 bits as many as sums and ranks leave room for in int64."""
    if num_ranks < 1:
        raise ConfigError(f"num_ranks={num_ranks} takes no sample. Set it to 1 or more.")
    values = check_costs(costs)
    largest = values.max(initial=0.0)
    if largest == 0.0:
        return np.zeros(len(values), np.int64)
    bits = min(32, 62 - (len(values) - 1).bit_length() - (num_ranks - 1).bit_length())
    return np.rint(values / largest * (2**bits - 1)).astype(np.int64)
