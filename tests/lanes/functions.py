"""What the worker processes of these tests run: at the top level of a module, as users write it."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # noqa: F401 - see `imports_arrow`


@dataclass
class Point:
    x: Any
    y: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class NeedsTwoError(Exception):
    """Pickles, but does not unpickle: `__init__` wants more than `args` holds."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Unwanted:
    """Pickles, and refuses to be unpickled."""

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("not here")

    def __getstate__(self) -> Any:
        return {"a": 1}


def same(item: Any) -> Any:
    return item


def double(item: Any) -> Any:
    return item * 2


def filled(item: tuple[int, int]) -> np.ndarray:
    """`count` integers, all of them `value`."""
    value, count = item
    return np.full(count, value)


def sometimes_fails(item: int) -> int:
    if item % 3 == 0:
        raise KeyError(item)
    return item


def raises(item: str) -> Any:
    if item == "stop":
        raise StopIteration
    if item == "two":
        raise NeedsTwoError(1, 2)
    if item == "interrupt":
        raise KeyboardInterrupt
    if item == "chain":
        try:
            int("x")
        except ValueError as error:
            raise RuntimeError("while reading") from error
    raise ValueError(item)


def returns(item: str) -> Any:
    if item == "lock":
        return threading.Lock()
    if item == "unwanted":
        return Unwanted()
    return item


def dies(item: str) -> str:
    if item == "exit":
        os._exit(3)
    if item == "sys.exit":
        sys.exit(4)
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "orphan":  # leaves a child behind that holds every inherited descriptor
        subprocess.Popen(["sleep", "60"], close_fds=False, start_new_session=True)
        os._exit(5)
    return item


def dies_once(item: tuple[int, str | None]) -> int:
    """Kills its process if the file at the second place does not exist yet; makes it first."""
    value, path = item
    if path is not None and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def whereabouts(what: str) -> Any:
    import random

    import torch

    return {
        "pid": lambda: os.getpid(),
        "modules": lambda: sorted(name.split(".")[0] for name in sys.modules),
        "torch threads": torch.get_num_threads,
        "random": lambda: (random.random(), float(np.random.random()), torch.rand(()).item()),  # noqa: NPY002
        "sigint": lambda: signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "environ": lambda: os.environ.get("LANES_TEST"),
        "huge pages": lambda: os.environ.get("THP_MEM_ALLOC_ENABLE"),
        "arrow pool": lambda: importlib.import_module("pyarrow").default_memory_pool().backend_name,
        "cwd": os.getcwd,
        "memory": lambda: int(Path("/proc/self/statm").read_text().split()[1]),
    }[what]()


def waits(path: str) -> None:
    """Says that it is there, then sleeps for ever."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(3600)


def spins(path: str) -> None:
    """Says that it is there, then holds the GIL for hours in one C call."""
    Path(path).write_text(str(os.getpid()))
    sum(range(10**13))


def burns(seconds: float) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def imports_arrow(_: Any) -> bool:
    """Whether Arrow was there before the first item came."""
    return "pyarrow" in sys.modules


class Keeps:
    """Keeps every item it has seen, in its process."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def __call__(self, item: Any) -> int:
        self.kept.append(item)
        return int(sum(kept.sum() for kept in self.kept))


class HasTable:
    """Bound data: a table that every lane reads."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def __call__(self, item: int) -> float:
        return float(self.table[item])


def was_imported(name: str) -> bool:
    """Import that module; whether this process had it before."""
    had = name in sys.modules
    importlib.import_module(name)
    return had
