"""What the job may use: CPUs by cgroup, cpuset and affinity, memory, /dev/shm; read anew as they change."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from lightning_intune.control.cgroup import Cgroup, cpus_in
from lightning_intune.control.process_tree import ProcessTree
from lightning_intune.control.system_file import line_after, read_text
from lightning_intune.errors import ConfigError

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_READS_PER_LOOK = 4
"""What hardly ever changes, or is only told, is read every so many times: each file costs a turn 60 us."""


@final
@dataclass(frozen=True, kw_only=True)
class _Slow:
    """Limits and counters of that kind."""

    cpuset: int | None
    memory_limit_bytes: int
    shm_size_bytes: int
    shm_free_bytes: int
    num_throttled: int
    throttled_s: float


@final
@dataclass(frozen=True, kw_only=True)
class BudgetReading:
    """The budget now. `cpus` is CPU seconds per second; memory counts anonymous and shared bytes, not page cache."""

    cpus: float
    memory_bytes: int
    memory_limit_bytes: int
    shm_free_bytes: int = 0
    shm_size_bytes: int = 0
    allowed_cpus: int = 0
    """CPUs this process may run on, whatever its quota; 0 where that is not known."""
    host_busy_s: float = 0.0
    """CPU seconds spent on those CPUs by everyone, a counter; 0 where the system does not tell."""
    num_throttled: int = 0
    """Periods in which the quota held the job back, a counter."""
    throttled_s: float = 0.0


class ReadsBudget(Protocol):
    """Anything that can say what the job may use."""

    def read(self) -> BudgetReading:
        """The budget now; called once per turn."""
        ...


@final
class Budget:
    """The budget of this process: the least of affinity, cpuset and CPU quota; memory limits and use.

    `ranks_on_host` processes train on this machine: each has its part of the CPUs and of the memory.
    `cpus` and `memory_limit_bytes` override what is found. `memory_share` of the found limit may be used.
    The roots are arguments so that tests read a tree of their own. Off Linux: `os.cpu_count` and psutil.

    >>> Budget(cpus=3.0, memory_limit_bytes=10**9).read().cpus
    3.0
    """

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        shm_path: Path = Path("/dev/shm"),
        cpus: float | None = None,
        memory_limit_bytes: int | None = None,
        memory_share: float = 0.8,
        ranks_on_host: int = 1,
    ) -> None:
        if cpus is not None and not cpus > 0:
            raise ConfigError(f"budget: cpus={cpus} leaves nothing to run on. Give a number above 0, or None.")
        if not 0 < memory_share <= 1:
            raise ConfigError(f"budget: memory_share={memory_share} is no share. Give a number in (0, 1].")
        if memory_limit_bytes is not None and memory_limit_bytes <= 0:
            raise ConfigError(
                f"budget: memory_limit_bytes={memory_limit_bytes} is no limit. Give bytes above 0, or None."
            )
        if ranks_on_host < 1:
            raise ConfigError(f"budget: ranks_on_host={ranks_on_host} counts this one too. Give 1 or more.")
        self._proc, self._shm_path = str(proc_root), shm_path
        self._listed, self._allowed_cpus = "", frozenset({0})
        self._cgroup = Cgroup(proc_root / "self" / "cgroup", cgroup_root)
        self._tree = ProcessTree(proc_root)
        self._cpus, self._limit, self._memory_share, self._ranks = cpus, memory_limit_bytes, memory_share, ranks_on_host
        self._num_reads = 0
        self._slow = _Slow(
            cpuset=None, memory_limit_bytes=2**62, shm_size_bytes=0, shm_free_bytes=0, num_throttled=0, throttled_s=0.0
        )

    def read(self) -> BudgetReading:
        """The budget now. Files that are missing or unreadable count as no limit.

        Affinity and CPU quota, memory held and CPUs busy are those of this moment; a memory limit, a cpuset, /dev/shm
        and throttling may be up to three readings old.
        """
        self._cgroup.look()
        if self._num_reads % _READS_PER_LOOK == 0:
            self._slow = self._look()
        self._num_reads += 1
        slow, allowed = self._slow, self._allowed()
        return BudgetReading(
            cpus=self._read_cpus(len(allowed), slow.cpuset),
            allowed_cpus=len(allowed),
            host_busy_s=self._host_busy_s(allowed),
            memory_bytes=self._tree.memory_bytes(),
            memory_limit_bytes=slow.memory_limit_bytes,
            shm_free_bytes=slow.shm_free_bytes,
            shm_size_bytes=slow.shm_size_bytes,
            num_throttled=slow.num_throttled,
            throttled_s=slow.throttled_s,
        )

    def _look(self) -> _Slow:
        size, free = self._shm()
        num_throttled, throttled_s = self._cgroup.throttling()
        return _Slow(
            cpuset=self._cgroup.cpuset(),
            memory_limit_bytes=self._read_limit(),
            shm_size_bytes=size,
            shm_free_bytes=free,
            num_throttled=num_throttled,
            throttled_s=throttled_s,
        )

    def _read_cpus(self, num_allowed: int, cpuset: int | None) -> float:
        if self._cpus is not None:
            return self._cpus
        cpus = float(num_allowed)
        if cpuset:
            cpus = min(cpus, float(cpuset))
        quota = self._cgroup.quota_cpus()
        if quota is not None:
            cpus = min(cpus, quota)
        return max(0.1, cpus / self._ranks)

    def _allowed(self) -> frozenset[int]:
        # The file, not os.sched_getaffinity: it can be faked, and read for the process, not the calling thread.
        listed = line_after(read_text(f"{self._proc}/self/status"), "Cpus_allowed_list:")
        if not listed:
            return frozenset(range(os.cpu_count() or 1))
        if listed != self._listed:
            self._listed, self._allowed_cpus = listed, cpus_in(listed) or frozenset({0})
        return self._allowed_cpus

    def _host_busy_s(self, allowed: frozenset[int]) -> float:
        # cpuN user nice system idle iowait irq softirq steal ..., in ticks. Source: proc_stat(5).
        ticks = 0
        for line in read_text(f"{self._proc}/stat").split("\n"):
            if not line.startswith("cpu"):
                break
            name, *counts = line.split()
            if len(counts) >= 8 and name[3:].isdigit() and int(name[3:]) in allowed:
                ticks += sum(int(counts[at]) for at in (0, 1, 2, 5, 6, 7))
        return ticks / _TICKS_PER_S

    def _read_limit(self) -> int:
        if self._limit is not None:
            return self._limit // self._ranks
        found = [limit for limit in (self._cgroup.memory_limit(), self._host_memory()) if limit is not None]
        return int(self._memory_share * min(found)) // self._ranks if found else 2**62

    def _host_memory(self) -> int | None:
        total = line_after(read_text(f"{self._proc}/meminfo"), "MemTotal:")
        if total:
            return int(total.split()[0]) * 1024
        return self._tree.host_memory_bytes()

    def _shm(self) -> tuple[int, int]:
        try:
            stats = os.statvfs(self._shm_path)
        except OSError:
            return 0, 0
        return stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize
