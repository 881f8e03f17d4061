"""Who gets how much of what several share: everyone a floor, then by need, and what nobody needs in proportion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Generic, TypeVar, final

K = TypeVar("K")

LEAST_SHARE = 0.25
"""Of an equal part, that everyone gets however little it asks for."""


def divide(total: float, wants: Mapping[K, float], floors: Mapping[K, float] | None = None) -> dict[K, float]:
    """Parts of `total` that sum to it, max-min fair: who wants little gets it, those who want more get equally much.

    Nobody gets less than `LEAST_SHARE` of an equal part, nor less than its floor while the floors fit into `total`
    (beyond, parts go by floors). What is left when all have what they want makes all parts greater by one factor. A
    want that is not a number is one for an equal part. Source: Bertsekas & Gallager (1992), "Data Networks", 6.5.2.

    >>> divide(4.0, {"a": 0.5, "b": 9.0, "c": 9.0})
    {'a': 0.5, 'b': 1.75, 'c': 1.75}
    >>> divide(4.0, {"a": 0.5, "b": 1.5})
    {'a': 1.0, 'b': 3.0}
    """
    if not wants:
        return {}
    equal = total / len(wants)
    least = {name: max(LEAST_SHARE * equal, _sound((floors or {}).get(name, 0.0), 0.0)) for name in wants}
    over = sum(least.values())
    if over >= total:
        return {name: total * floor / over for name, floor in least.items()}
    need = {name: max(least[name], min(total, _sound(want, equal))) for name, want in wants.items()}
    parts = dict(least)
    # Raise the lowest parts together, each up to its need: after every round one more has what it needs.
    left = total - over
    while left > 1e-12 * total and (short := [name for name in wants if parts[name] < need[name]]):
        lowest = min(parts[name] for name in short)
        rising = [name for name in short if parts[name] <= lowest]
        stops = [need[name] for name in rising] + [parts[name] for name in short if parts[name] > lowest]
        step = min(min(stops) - lowest, left / len(rising))
        for name in rising:
            parts[name] = lowest + step
        left -= step * len(rising)
        if step <= 0:
            break
    given = sum(parts.values())
    return {name: part * total / given for name, part in parts.items()}


def _sound(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else max(0.0, value)


@final
class Arbiter(Generic[K]):
    """`divide`, as shares of 1 that stay as they are until one should change by `least_change` of itself.

    A share that moved with every turn would be a shift in the eyes of whoever tunes within it. One thread's.
    """

    def __init__(self, least_change: float = 0.15) -> None:
        self._least_change = least_change
        self._shares: dict[K, float] = {}

    def shares(self, total: float, wants: Mapping[K, float], floors: Mapping[K, float] | None = None) -> dict[K, float]:
        """By name, shares that sum to 1."""
        found = {name: part / total for name, part in divide(total, wants, floors).items()}
        kept = self._shares
        if found.keys() != kept.keys() or any(
            abs(share - kept[name]) > self._least_change * kept[name] for name, share in found.items()
        ):
            self._shares = found
        return dict(self._shares)
