"""Native thread pools inside a stage's function: one thread each, since the stage's width is the parallelism."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

import torch

_OPENMP = re.compile(r"lib(gomp|iomp5|omp)\b[^/]*\.so[^/]*$")


def use_one() -> None:
    """Have every OpenMP region that *this* thread begins run in this thread alone; other threads keep their numbers.

    Else each worker whose function calls torch on a large tensor has a team of its own, of as many threads as the
    trainer's, which wait for each other by spinning; a DataLoader's workers and our processes have one thread too.
    A function that calls `torch.set_num_threads` has its will, and a matrix product by MKL keeps MKL's number.
    """
    torch.get_num_threads()  # torch gives a thread the process's number when it is first asked: not later, over ours
    for library in _openmp():
        library.omp_set_num_threads(1)


@cache
def _openmp() -> tuple[ctypes.CDLL, ...]:
    """The OpenMP libraries that this process has loaded; none where the system does not tell (macOS)."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ()
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if _OPENMP.search(line)}
    return tuple(ctypes.CDLL(path) for path in sorted(paths) if os.path.exists(path))
