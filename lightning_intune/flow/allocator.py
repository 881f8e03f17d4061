"""What C's allocator does with the large arrays of batches: it keeps them for the next batch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_LARGEST_BYTES = 32 << 20
"""Larger arrays go back to the system at once. Some versions of glibc refuse a larger threshold."""
_KEPT_BYTES = 256 << 20
"""Free memory at an arena's end that is not given back."""
_ALL_BYTES = 1 << 30
_OWN_SETTINGS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"


@cache
def keep_freed_memory() -> bool:
    """Once per process: have glibc use freed arrays of up to 32 MiB again; whether it does.

    By default it gives them back, and every batch of 20 MB takes 5,000 page faults anew: a quarter of what the batch
    costs, or more. Where `has_own_settings`, those stay.
    """
    return _set((_M_MMAP_THRESHOLD, _LARGEST_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))


def keep_all_memory() -> bool:
    """The same for a process that does nothing but make items: arrays of any size, from one arena."""
    _set((_M_MMAP_THRESHOLD, _LARGEST_BYTES))  # for a glibc that refuses the next
    return _set((_M_MMAP_THRESHOLD, _ALL_BYTES), (_M_TRIM_THRESHOLD, _ALL_BYTES), (_M_ARENA_MAX, 1))


def give_back_memory() -> None:
    """What is free goes back to the system, if `keep_freed_memory` has kept it."""
    trim = _of_libc("malloc_trim")
    if trim is not None and keep_freed_memory.cache_info().currsize > 0 and keep_freed_memory():
        trim(0)


def has_own_settings(environment: Mapping[str, str]) -> bool:
    """Whether someone has told glibc what to do: `MALLOC_MMAP_THRESHOLD_` and the like, or `GLIBC_TUNABLES`.

    >>> has_own_settings({"MALLOC_TRIM_THRESHOLD_": "0"}), has_own_settings({"HOME": "/"})
    (True, False)
    """
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(name in environment for name in _OWN_SETTINGS)


def _set(*options: tuple[int, int]) -> bool:
    mallopt = _of_libc("mallopt")
    if mallopt is None or has_own_settings(os.environ):
        return False
    return all(mallopt(option, value) for option, value in options)


def _of_libc(name: str) -> Callable[..., Any] | None:
    """None where C's library has no such function: it is not glibc."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
