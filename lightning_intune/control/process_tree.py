"""Memory of this process and its children: anonymous and shared bytes, without the page cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from lightning_intune.control.system_file import line_after, read_text

_READS_PER_WALK = 8
"""Children are looked up every so many reads: lanes come and go slowly, a walk costs a file per thread."""


@final
class ProcessTree:
    """Sums `RssAnon` over the tree and adds the greatest `RssShmem`.

    A shared segment is resident in every process that maps it; the parent maps all its lanes' segments,
    so the greatest is close to the union, where a sum would count each segment several times.
    """

    def __init__(self, proc_root: Path, pid: int | None = None) -> None:
        self._root = str(proc_root)
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
            tasks = f"{self._root}/{pid}/task"
            try:
                threads = os.listdir(tasks)
            except OSError:  # the process has ended, or this is not Linux
                continue
            for thread in threads:
                todo += [int(child) for child in read_text(f"{tasks}/{thread}/children").split()]
        return found

    def _own_pid(self) -> int:
        return os.getpid() if self._pid is None else self._pid

    def _status(self, pid: int) -> tuple[int, int]:
        text = read_text(f"{self._root}/{pid}/status")
        return _bytes(text, "RssAnon:"), _bytes(text, "RssShmem:")

    def _resident(self) -> int:
        if self._pid is not None:
            return 0
        try:
            import psutil
        except ImportError:
            return 0
        return int(psutil.Process().memory_info().rss)


def _bytes(status: str, key: str) -> int:
    kib = line_after(status, key)
    return int(kib.split()[0]) * 1024 if kib else 0
