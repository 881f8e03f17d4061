"""What this process holds: threads, descriptors, processes, shared memory; and what of it was left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import psutil

LASTING = ("pytest_timeout", "tqdm", "ray")


@final
@dataclass(frozen=True, kw_only=True)
class Census:
    """One count. Our fork server and multiprocessing's helpers live as long as this process: they do not count."""

    threads: frozenset[threading.Thread]
    processes: frozenset[psutil.Process]
    num_fds: int
    num_shared: int
    """Mappings of shared memory that lanes have made."""
    rss_bytes: int

    @staticmethod
    def take() -> Census:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return Census(
            threads=frozenset(t for t in threading.enumerate() if not t.name.startswith(LASTING)),
            processes=frozenset(_processes()),
            num_fds=len(os.listdir("/proc/self/fd")),
            num_shared=maps.count("memfd:lightning_intune"),
            rss_bytes=psutil.Process().memory_info().rss,
        )

    def leaks(self, grace_s: float) -> list[str]:
        """What is there now that was not when this was taken, after a moment to be gone."""
        end_s = time.monotonic() + grace_s
        while True:
            found = self._left(Census.take())
            if not found or time.monotonic() > end_s:
                return found
            time.sleep(0.05)  # for the kernel to reap what was killed

    def _left(self, now: Census) -> list[str]:
        found = [f"leaked thread: {thread.name}" for thread in now.threads - self.threads if thread.is_alive()]
        found += [f"leaked process: {process.pid}" for process in now.processes - self.processes if _lives(process)]
        if now.num_fds > self.num_fds:
            found.append(f"leaked fd: {now.num_fds - self.num_fds}")
        if now.num_shared > self.num_shared:
            found.append(f"leaked shared memory: {now.num_shared - self.num_shared} mappings")
        return found


def _processes() -> list[psutil.Process]:
    from multiprocessing import forkserver, resource_tracker

    forking = sys.modules.get("lightning_intune.flow.lanes.forking")
    lasting = {
        *(forking.FORK_SERVER.pids if forking is not None else ()),
        forkserver._forkserver._forkserver_pid,  # pyright: ignore[reportAttributeAccessIssue]
        resource_tracker._resource_tracker._pid,  # pyright: ignore[reportAttributeAccessIssue]
    }
    return [process for process in psutil.Process().children(recursive=True) if process.pid not in lasting]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
