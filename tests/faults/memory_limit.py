"""A limit of memory for a process and its children: a control group where one can be made, else RLIMIT_AS.

A group is made below the group that this process is in, so that limits above go on holding, and is removed afterwards.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

MOUNT = Path("/sys/fs/cgroup")


@final
class MemoryGroup:
    """A control group of version 1 or 2; or, without a folder, this process's address space alone."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        is_first = folder is not None and (folder / "memory.limit_in_bytes").exists()
        self._limit, self._used, self._peak = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes")
            if is_first
            else ("memory.max", "memory.current", "memory.peak")
        )

    @property
    def kind(self) -> str:
        """In words."""
        return "RLIMIT_AS" if self.folder is None else "control group"

    def join(self) -> None:
        """This process, and what it starts from now on, is in."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def limit(self, spare_bytes: int) -> None:
        """No more than what is used now and so many bytes; the peak begins anew."""
        if self.folder is None:
            # Address space is not memory: threads reserve some that they never touch.
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + spare_bytes + (256 << 20), resource.RLIM_INFINITY))
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew: proc(5)
            return
        (self.folder / self._limit).write_text(str(self.used() + spare_bytes))
        with suppress(OSError):  # version 2 before Linux 6.12 keeps the peak since the group began
            (self.folder / self._peak).write_text("0")

    def used(self) -> int:
        """Bytes."""
        if self.folder is None:
            return _status("VmRSS")
        return int((self.folder / self._used).read_text())

    def peak(self) -> int:
        """The most bytes since `limit`, of all processes in the group; without one, of this process."""
        if self.folder is None:
            return _status("VmHWM")
        return int((self.folder / self._peak).read_text())


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A new one, if that is allowed here; it must be empty at the end, and is waited for."""
    folder = _made(f"lightning-intune-{os.getpid()}-{time.monotonic_ns()}")
    try:
        yield MemoryGroup(folder)
    finally:
        end_s = time.monotonic() + 10
        while folder is not None and folder.exists() and time.monotonic() < end_s:
            with suppress(OSError):  # who was killed may still be leaving
                folder.rmdir()
            time.sleep(0.02)


def _made(name: str) -> Path | None:
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("memory", ""):
            continue
        folder = (MOUNT / "memory" if controllers else MOUNT) / path.lstrip("/") / name
        needed = "memory.limit_in_bytes" if controllers else "memory.max"
        with suppress(OSError):
            folder.mkdir()
            if (folder / needed).exists() and os.access(folder / "cgroup.procs", os.W_OK):
                return folder
            folder.rmdir()
    return None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _status(name: str) -> int:
    return int(next(line for line in _lines(Path("/proc/self/status")) if line.startswith(name)).split()[1]) * 1024
