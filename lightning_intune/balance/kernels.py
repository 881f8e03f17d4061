"""The inner loops of planning: numba without the GIL where it is installed, NumPy with the same results elsewhere.

All loads are int64, so that every rank, on whatever CPU, comes to the same plan: no sum depends on its order.
"""

from __future__ import annotations

import heapq
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

HAS_NUMBA = importlib.util.find_spec("numba") is not None
_NONE = np.iinfo(np.int64).max


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` itself without numba; its callees must then be what Python can run fast enough."""
    if not HAS_NUMBA:
        return function
    from numba import njit

    return njit(nogil=True, cache=True)(function)


def _radix_pass(units: Ints, order: Ints, shift: int) -> Ints:
    """`order` sorted stably by 16 bits of `units`, the largest first."""
    counts = np.zeros((1 << 16) + 1, np.int64)
    for i in range(len(order)):
        counts[0x10000 - ((units[i] >> shift) & 0xFFFF)] += 1
    for digit in range(1 << 16):
        counts[digit + 1] += counts[digit]
    out = np.empty(len(order), np.int64)
    for i in range(len(order)):
        index = order[i]
        digit = 0xFFFF - ((units[index] >> shift) & 0xFFFF)
        out[counts[digit]] = index
        counts[digit] += 1
    return out


_radix_pass = _compiled(_radix_pass)


def order_descending(units: Ints) -> Ints:
    """Indices of `units` (in [0, 2**32)) from the largest down, equal ones in their order."""
    if not HAS_NUMBA or len(units) < 4096:
        return np.argsort(-units, kind="stable").astype(np.int64)
    return _radix_pass(units, _radix_pass(units, np.arange(len(units)), 0), 16)


def _sink(heap: Ints, size: int, key: int) -> None:
    """Put `key` in the place of the heap's least; behind its `size` entries the heap holds `_NONE`."""
    place, child = 0, 1
    while child < size:
        if heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key


_sink = _compiled(_sink)


def _deal_compiled(units: Ints, order: Ints, num_ranks: int, rank_bits: int, equal_count: bool) -> Ints:
    floor, num_extra = len(units) // num_ranks, len(units) % num_ranks
    counts = np.zeros(num_ranks, np.int64)
    ranks = np.empty(len(units), np.int64)
    heap = np.full(num_ranks + 2, _NONE, np.int64)
    heap[:num_ranks] = np.arange(num_ranks)
    size, mask = num_ranks, (1 << rank_bits) - 1
    for index in order:
        while equal_count:
            count = counts[heap[0] & mask]
            if count < floor or (count == floor and num_extra > 0):
                num_extra -= count == floor
                break
            size -= 1
            last = heap[size]
            heap[size] = _NONE
            _sink(heap, size, last)
        rank = heap[0] & mask
        ranks[index] = rank
        counts[rank] += 1
        _sink(heap, size, heap[0] + (units[index] << rank_bits))
    return ranks


def _deal_plain(units: Ints, order: Ints, num_ranks: int, rank_bits: int, equal_count: bool) -> Ints:
    floor, num_extra = divmod(len(units), num_ranks)
    heap, mask = list(range(num_ranks)), (1 << rank_bits) - 1
    counts = [0] * num_ranks
    dealt: list[int] = []
    for added in (units[order] << rank_bits).tolist():
        while equal_count:
            count = counts[heap[0] & mask]
            if count < floor or (count == floor and num_extra > 0):
                num_extra -= count == floor
                break
            heapq.heappop(heap)
        rank = heap[0] & mask
        dealt.append(rank)
        counts[rank] += 1
        heapq.heapreplace(heap, heap[0] + added)
    ranks = np.empty(len(units), np.int64)
    ranks[order] = dealt
    return ranks


_deal = _compiled(_deal_compiled) if HAS_NUMBA else _deal_plain


def deal(units: Ints, num_ranks: int, *, equal_count: bool) -> Ints:
    """LPT: samples from the costliest down, each to the rank of least (load, number) that may take one more.

    With `equal_count` ranks end with N // R or N // R + 1 samples. `units` is [N], in [0, 2**32), and its sum times
    twice `num_ranks` below 2**63.
    """
    return _deal(units, order_descending(units), num_ranks, max(1, (num_ranks - 1).bit_length()), equal_count)


def _best_pair_compiled(heavy: Ints, light: Ints, want: int, gap: int) -> tuple[int, int]:
    best, best_i, best_j = _NONE, -1, -1
    j = 0
    for i in range(len(heavy)):
        while j < len(light) and light[j] < heavy[i] - want:
            j += 1
        for k in (j - 1, j):
            if 0 <= k < len(light):
                gain = heavy[i] - light[k]
                if 0 < gain < gap and abs(gain - want) < best:
                    best, best_i, best_j = abs(gain - want), i, k
    return best_i, best_j


def _best_pair_plain(heavy: Ints, light: Ints, want: int, gap: int) -> tuple[int, int]:
    if len(heavy) == 0 or len(light) == 0:
        return -1, -1
    upper = np.searchsorted(light, heavy - want)
    places = np.stack([upper - 1, upper], axis=1)
    gains = heavy[:, None] - light[np.clip(places, 0, len(light) - 1)]
    fits = (places >= 0) & (places < len(light)) & (gains > 0) & (gains < gap)
    score = np.where(fits, np.abs(gains - want), _NONE)
    best = int(score.argmin())  # the first of equals, as in the loop above
    return (best // 2, int(places.flat[best])) if fits.flat[best] else (-1, -1)


_best_pair = _compiled(_best_pair_compiled) if HAS_NUMBA else _best_pair_plain


def _place(row: Ints, row_units: Ints, size: Any, index: Any, unit: Any) -> None:
    """Put a sample into the row's first `size` entries, which are sorted by units."""
    at = np.searchsorted(row_units[:size], unit)
    for k in range(size, at, -1):
        row[k], row_units[k] = row[k - 1], row_units[k - 1]
    row[at], row_units[at] = index, unit


def _take(row: Ints, row_units: Ints, size: Any, at: Any) -> None:
    for k in range(at, size - 1):
        row[k], row_units[k] = row[k + 1], row_units[k + 1]


_place, _take = _compiled(_place), _compiled(_take)


def _rows(units: Ints, ranks: Ints, ascending: Ints, starts: Ints) -> tuple[Ints, Ints]:
    """Each rank's samples and their units from the cheapest up, from `starts[rank]` on."""
    members, member_units = np.zeros(starts[-1], np.int64), np.zeros(starts[-1], np.int64)
    place = starts.copy()
    for index in ascending:
        at = place[ranks[index]]
        members[at], member_units[at] = index, units[index]
        place[ranks[index]] = at + 1
    return members, member_units


_rows = _compiled(_rows)


def _swap_loop(
    ranks: Ints,
    members: Ints,
    member_units: Ints,
    starts: Ints,
    counts: Ints,
    loads: Ints,
    max_moved: int,
    tolerance: int,
    equal_count: bool,
) -> Ints:
    mean, num_moved = loads.sum() // len(loads), 0
    while num_moved + 2 <= max_moved:
        heavy, light = loads.argmax(), loads.argmin()
        gap = loads[heavy] - loads[light]
        if loads[heavy] - mean <= tolerance or gap <= 1:
            break
        want = max(1, min(loads[heavy] - mean, mean - loads[light]))
        a, b = starts[heavy], starts[light]
        heavy_units, light_units = member_units[a : starts[heavy + 1]], member_units[b : starts[light + 1]]
        i, j = _best_pair(heavy_units[: counts[heavy]], light_units[: counts[light]], want, gap)
        alone = -1
        if not equal_count and counts[light] < len(light_units):
            at = np.searchsorted(heavy_units[: counts[heavy]], want)
            alone = at if at < counts[heavy] and heavy_units[at] < gap else at - 1
            if alone >= 0 and (i < 0 or abs(heavy_units[alone] - want) <= abs(heavy_units[i] - light_units[j] - want)):
                i, j = alone, -1
            if i >= 0 and heavy_units[i] == 0:
                i = -1
        if i < 0:
            break
        given, given_units = members[a + i], heavy_units[i]
        _take(members[a : starts[heavy + 1]], heavy_units, counts[heavy], i)
        counts[heavy] -= 1
        gain = given_units
        if j >= 0:
            back, back_units = members[b + j], light_units[j]
            _take(members[b : starts[light + 1]], light_units, counts[light], j)
            _place(members[a : starts[heavy + 1]], heavy_units, counts[heavy], back, back_units)
            counts[heavy] += 1
            counts[light] -= 1
            ranks[back] = heavy
            gain -= back_units
            num_moved += 1
        _place(members[b : starts[light + 1]], light_units, counts[light], given, given_units)
        counts[light] += 1
        ranks[given] = light
        num_moved += 1
        loads[heavy] -= gain
        loads[light] += gain
    return ranks


_swap_loop = _compiled(_swap_loop)


def swap(
    units: Ints,
    ranks: Ints,
    num_ranks: int,
    *,
    max_moved: int,
    tolerance: int = 0,
    equal_count: bool = True,
    fixed: Ints | None = None,
) -> Ints:
    """`ranks` after few swaps between the heaviest rank and the lightest, so that none exceeds the mean by much.

    A swap moves two samples; without `equal_count` one may move alone. It ends when no rank exceeds the mean by more
    than `tolerance`, when no swap helps, or before more than `max_moved` samples have moved. `units`, `ranks` are [N];
    `fixed` [num_ranks] is load that cannot move.
    """
    counts = np.bincount(ranks, minlength=num_ranks).astype(np.int64)
    room = counts if equal_count else counts + np.maximum(16, counts // 4)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(room)])
    loads = np.zeros(num_ranks, np.int64) if fixed is None else fixed.copy()
    np.add.at(loads, ranks, units)
    members, member_units = _rows(units, ranks, order_descending(units)[::-1], starts)
    return _swap_loop(ranks.copy(), members, member_units, starts, counts, loads, max_moved, tolerance, equal_count)
