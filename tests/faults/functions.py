"""What the stages of these trials run: at the top level of a module, so that processes can have it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

WORST = 37
"""The item that is bad."""

_leaked: list[Any] = []


def same(n: Any) -> Any:
    return n


def uneven(n: int) -> int:
    """Some items take much longer than their neighbours."""
    if n % 11 == 0:
        time.sleep(0.002)
    return n


def raises(n: int) -> int:
    if n == WORST:
        raise ValueError(f"item {n} is bad")
    return n


def sometimes_raises(n: int) -> int:
    if n % 10 == 7:
        raise ValueError(f"item {n} is bad")
    return n


def hangs(n: int) -> int:
    if n == WORST:
        time.sleep(3600)
    return n


def kills_itself(n: int) -> int:
    if n == WORST:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def exits(n: int) -> int:
    if n == WORST:
        os._exit(3)
    return n


def sys_exits(n: int) -> int:
    if n == WORST:
        sys.exit(4)
    return n


def cannot_leave(n: int) -> Any:
    return threading.Lock() if n == WORST else n


def huge(n: int) -> np.ndarray:
    return np.full(4_000_000 if n % 4 == 0 else 50_000, n, np.int64)


def leaks(n: int) -> int:
    """Threads, descriptors and memory that nobody will ever free, in the process it runs in."""
    _leaked.append(bytearray(100_000))
    _leaked.append(open(os.devnull))  # noqa: SIM115 - that is the point
    thread = threading.Thread(target=threading.Event().wait, name="leaked by the function", daemon=True)
    thread.start()
    return n
