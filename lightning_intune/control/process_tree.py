"""Memory of this process and its children: anonymous and shared bytes, without the page cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

_READS_PER_WALK = 8
"""Children are looked up every so many reads: lanes come and go slowly, a walk costs a file per thread."""


@final
class ProcessTree:
    """Sums `RssAnon` over the tree and adds the greatest `RssShmem`.

    A shared segment is resident in every process that maps it; the parent maps all its lanes' segments,
    so the greatest is close to the union, where a sum would count each segment several times.
    """

    def __init__(self, proc_root: Path, pid: int | None = None) -> None:
        self._root = proc_root
        self._pid = pid
        self._pids: list[int] = []
        self._num_reads = 0

    def memory_bytes(self) -> int:
        """Bytes held now; 0 where the system tells nothing."""
        if self._num_reads % _READS_PER_WALK == 0:
            self._pids = self._walk()
        self._num_reads += 1
        anon, shared = 0, 0
        for pid in self._pids:
            mine, mapped = self._status(pid)
            anon, shared = anon + mine, max(shared, mapped)
        return anon + shared if anon + shared > 0 else self._resident()

    def host_memory_bytes(self) -> int | None:
        """All memory of the host, where only psutil knows it (not Linux)."""
        try:
            import psutil
        except ImportError:
            return None
        return int(psutil.virtual_memory().total)

    def _walk(self) -> list[int]:
        found, todo = list[int](), [self._own_pid()]
        while todo:
            pid = todo.pop()
            if pid in found:
                continue
            found.append(pid)
            tasks = self._root / str(pid) / "task"
            try:
                threads = os.listdir(tasks)
            except OSError:  # the process has ended, or this is not Linux
                continue
            for thread in threads:
                todo += [int(child) for child in _text(tasks / thread / "children").split()]
        return found

    def _own_pid(self) -> int:
        return os.getpid() if self._pid is None else self._pid

    def _status(self, pid: int) -> tuple[int, int]:
        anon = shared = 0
        for line in _text(self._root / str(pid) / "status").splitlines():
            if line.startswith("RssAnon:"):
                anon = int(line.split()[1]) * 1024
            elif line.startswith("RssShmem:"):
                shared = int(line.split()[1]) * 1024
        return anon, shared

    def _resident(self) -> int:
        if self._pid is not None:
            return 0
        try:
            import psutil
        except ImportError:
            return 0
        return int(psutil.Process().memory_info().rss)


def _text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # Path.read_text costs twice as much
            return file.read()
    except OSError:
        return ""
