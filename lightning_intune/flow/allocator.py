"""What C's allocator does with the large arrays of batches: it keeps them for the next batch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)
_LARGEST_BYTES = 32 << 20
"""Larger arrays go back to the system at once. Before glibc 2.35 it refuses a larger threshold."""
_KEPT_BYTES = 256 << 20
"""Free memory at the end of the main arena that is not given back. Other threads' arenas grow by 64 MiB at a time."""
_ALL_BYTES = 1 << 30
_OWN_SETTINGS = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"


@cache
def keep_freed_memory() -> bool:
    """Once per process: have glibc use freed arrays of up to 32 MiB again; whether it does.

    By default it gives most of what a batch frees back, and takes thousands of page faults for the next. Where
    `has_own_settings`, those stay.
    """
    if has_own_settings(os.environ):
        return False
    return _set((_M_MMAP_THRESHOLD, _LARGEST_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))


def keep_all_memory() -> bool:
    """The same for a process that does nothing but make items, whatever is set: arrays of any size, from one arena."""
    _set((_M_MMAP_THRESHOLD, _LARGEST_BYTES))  # for a glibc that refuses the next
    return _set((_M_MMAP_THRESHOLD, _ALL_BYTES), (_M_TRIM_THRESHOLD, _ALL_BYTES), (_M_ARENA_MAX, 1))


def give_back_memory() -> None:
    """What is free goes back to the system, less the ends of other threads' arenas."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)


def has_own_settings(environment: Mapping[str, str]) -> bool:
    """Whether someone has told glibc what to keep: `MALLOC_MMAP_THRESHOLD_` and the like, or `GLIBC_TUNABLES`.

    >>> has_own_settings({"MALLOC_TRIM_THRESHOLD_": "0"}), has_own_settings({"HOME": "/"})
    (True, False)
    """
    return "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or any(name in environment for name in _OWN_SETTINGS)


def _set(*options: tuple[int, int]) -> bool:
    """Each of them, be one refused or not; whether none was."""
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    taken = [mallopt(option, value) for option, value in options]
    return all(taken)


def _of_libc(name: str) -> Callable[..., Any] | None:
    """None where C's library has no such function: it is not glibc."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
