"""The limits of the control groups this process is in, version 1 and 2, over all of their ancestors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import final

from lightning_intune.control.system_file import read_text

_NO_LIMIT = 2**60
"""Version 1 writes 'no memory limit' as the greatest multiple of a page below 2^63."""

_READS_PER_LOOK = 8
"""Which groups and files there are is looked up every so many reads; what they hold is read each time."""

_FILES = {
    "cpu": ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.stat"),
    "cpuset": ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"),
    "memory": ("memory.max", "memory.high", "memory.limit_in_bytes"),
}


def cpus_in(text: str) -> frozenset[int]:
    """The CPUs in a list as the kernel writes it.

    >>> sorted(cpus_in("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


@final
class Cgroup:
    """Reads limits anew at each call; what cannot be read is no limit.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. Inside a container the path in
    /proc/self/cgroup may not exist under the mounted root, which is then the process's own group.
    """

    def __init__(self, membership: Path, root: Path) -> None:
        self._membership, self._root = membership, root
        self._found: dict[str, list[dict[str, str]]] = {}
        self._reads_left = 0

    def look(self) -> None:
        """Call once per reading: now and then the groups are looked up anew, since most files are never there."""
        if self._reads_left == 0:
            self._found = {controller: self._groups(controller) for controller in _FILES}
            self._reads_left = _READS_PER_LOOK
        self._reads_left -= 1

    def quota_cpus(self) -> float | None:
        """CPU seconds per second that the quotas allow, None without a quota."""
        found: list[float] = []
        for files in self._having("cpu"):
            text = _read(files.get("cpu.max")).split()
            if len(text) == 2 and text[0] != "max":
                found.append(int(text[0]) / int(text[1]))
            quota, period = _number(files.get("cpu.cfs_quota_us")), _number(files.get("cpu.cfs_period_us"))
            if quota is not None and period and quota > 0:
                found.append(quota / period)
        return min(found) if found else None

    def cpuset(self) -> int | None:
        """CPUs in the cpuset, None where none is set."""
        for files in self._having("cpuset"):
            for name in _FILES["cpuset"]:
                count = _cpus(_read(files.get(name)))
                if count:
                    return count
        return None

    def memory_limit(self) -> int | None:
        """Bytes, the least limit on the way to the root; None without one."""
        found: list[int] = []
        for files in self._having("memory"):
            for path in files.values():
                limit = _number(path)
                if limit is not None and 0 < limit < _NO_LIMIT:
                    found.append(limit)
        return min(found) if found else None

    def throttling(self) -> tuple[int, float]:
        """(periods, seconds) in which the quota held this group back, since it began."""
        for files in self._having("cpu"):
            lines = _read(files.get("cpu.stat")).splitlines()
            stats = dict(line.split(maxsplit=1) for line in lines if " " in line)
            if "nr_throttled" in stats:
                seconds = int(stats.get("throttled_usec", 0)) / 1e6 + int(stats.get("throttled_time", 0)) / 1e9
                return int(stats["nr_throttled"]), seconds
        return 0, 0.0

    def _having(self, controller: str) -> list[dict[str, str]]:
        if not self._found:
            self.look()
        return self._found[controller]

    def _groups(self, controller: str) -> list[dict[str, str]]:
        # By group, from the process's own to the root, the files that there are.
        groups = [{name: folder / name for name in _FILES[controller]} for folder in self._folders(controller)]
        return [{name: str(path) for name, path in group.items() if path.exists()} for group in groups]

    def _folders(self, controller: str) -> Iterator[Path]:
        # From the process's own group up to the mounted root, for either version.
        for line in _read(str(self._membership)).splitlines():
            parts = line.split(":", 2)
            if len(parts) != 3 or not (parts[1] == "" or controller in parts[1].split(",")):
                continue
            base = self._root / controller if parts[1] else self._root
            if parts[1] == "" and not (base / "cgroup.controllers").exists():
                base = self._root / "unified"
            here = base / parts[2].lstrip("/")
            while True:
                if here.is_dir():
                    yield here
                if here == base or base not in here.parents:
                    break
                here = here.parent


def _read(path: str | None) -> str:
    return "" if path is None else read_text(path)


def _number(path: str | None) -> int | None:
    try:
        return int(_read(path))
    except ValueError:  # empty, or "max"
        return None


def _cpus(text: str) -> int:
    try:
        return len(cpus_in(text))
    except ValueError:
        return 0
