"""Functions that fail on some items, for the tests of what a stage does about that."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from hypothesis import strategies as st

from lightning_intune.flow import OnError

ALWAYS = OnError(skip=True, max_share=1.0)
SEEDS = st.integers(0, 999)


class BadItemError(ValueError):
    """What the functions here raise."""


def is_bad(n: int) -> bool:
    return n % 7 == 3


def fragile(n: int) -> int:
    if is_bad(n):
        raise BadItemError(f"item {n} is damaged")
    return n


def good(count: int) -> list[int]:
    return [n for n in range(count) if not is_bad(n)]


class FailsFirst:
    """Fails the first `times` calls for each item for which `when` holds."""

    def __init__(self, times: int, when: Callable[[int], bool] = is_bad) -> None:
        self.times, self.when, self.calls, self.lock = times, when, Counter[int](), threading.Lock()

    def __call__(self, n: int) -> int:
        with self.lock:
            self.calls[n] += 1
        if self.when(n) and self.calls[n] <= self.times:
            raise BadItemError(f"item {n}, call {self.calls[n]}")
        return n
