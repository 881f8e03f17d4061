"""The console command `doctor`: what this library sees of the machine, whether each lane works, what to change."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, final

from lightning_intune.control.budget import Budget, BudgetReading
from lightning_intune.control.cgroup import Cgroup
from lightning_intune.errors import ConfigError

Verdict = Literal["ok", "note", "bad"]

_PACKAGES = ("torch", "lightning", "torchdata", "pyarrow", "numpy")
_EXTRAS = {
    "fast": "numba",
    "etl": "duckdb",
    "torchrec": "torchrec",
    "ray": "ray",
    "plots": "matplotlib",
    "metrics": "prometheus_client",
}
_LEAST_SHM_BYTES = 256 << 20
_LEAST_FILES = 4096
_GIB = 2**30
_NETWORK = ("nfs", "cifs", "smb", "lustre", "ceph", "gpfs", "beegfs", "fuse", "9p")
_MARK: dict[Verdict, str] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""
    """What to change; empty where nothing needs to be."""


def main(arguments: Sequence[str]) -> int:
    """`lightning-intune doctor [PATH]`; the exit status is 1 where something is bad. ConfigError for a mistake."""
    parser = argparse.ArgumentParser(
        prog="lightning-intune doctor",
        description="Show what the library sees of this machine, run an item through each lane, say what to change.",
    )
    parser.add_argument("path", nargs="?", type=Path, help="where the training data lies: its disk is looked at too")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    how.add_argument("--quiet", action="store_true", help="show only what is to be changed; nothing where all is well")
    parser.add_argument("--ray", action="store_true", help="try a Ray lane too: starts or joins a cluster (seconds)")
    options = parser.parse_args(arguments)
    if options.path is not None and not options.path.exists():
        raise ConfigError(f"there is no file or folder '{options.path}'. Correct the path, or leave it out.")
    found = [*machine(), *versions(), *limits(), *lanes(with_ray=options.ray)]
    if options.path is not None:
        found.append(disk(options.path))
    is_bad = any(finding.verdict == "bad" for finding in found)
    if options.json:
        report = {"is_well": not is_bad, "findings": [asdict(finding) for finding in found]}
        sys.stdout.write(json.dumps(report) + "\n")
    elif shown := [finding for finding in found if not (options.quiet and finding.verdict == "ok")]:
        _show(shown)
    return int(is_bad)


# ---- what there is ----


def machine(reading: BudgetReading | None = None, cgroup: Cgroup | None = None) -> list[Finding]:
    """CPUs, their quota, memory and shared memory, as the tuner's budget has them."""
    reading = Budget(memory_share=1.0).read() if reading is None else reading
    cgroup = Cgroup(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")) if cgroup is None else cgroup
    quota, limit = cgroup.quota_cpus(), cgroup.memory_limit()
    installed = os.cpu_count() or 1
    share = f"{reading.cpus:g} usable; {installed} in the machine, {reading.allowed_cpus} by affinity, quota "
    used = reading.memory_bytes / max(1, reading.memory_limit_bytes)
    return [
        Finding(
            what="CPUs",
            found=share + ("none" if quota is None else f"{quota:g}"),
            verdict="note" if reading.cpus < 2 else "ok",
            advice="With one CPU, stages take turns: only waiting for storage can be hidden."
            if reading.cpus < 2
            else "",
        ),
        Finding(
            what="CPU throttling",
            found=f"{reading.num_throttled} periods, {reading.throttled_s:.1f} s since the group began",
            verdict="note" if reading.throttled_s > 60 else "ok",
            advice="The quota holds the job back: ask for more CPUs, or for none that it does not have."
            if reading.throttled_s > 60
            else "",
        ),
        Finding(
            what="memory",
            found=f"{reading.memory_limit_bytes / _GIB:.1f} GiB {'by control group' if limit else 'in the machine'}, "
            f"{used:.0%} of it in use by this job",
            verdict="bad" if used > 0.9 else "ok",
            advice="The job is near its end: lower batch_size or max_prefetch_bytes." if used > 0.9 else "",
        ),
        _shm(reading),
    ]


def _shm(reading: BudgetReading) -> Finding:
    is_small = reading.shm_free_bytes < _LEAST_SHM_BYTES
    return Finding(
        what="/dev/shm",
        found=f"{reading.shm_free_bytes / _GIB:.2f} of {reading.shm_size_bytes / _GIB:.2f} GiB free",
        verdict="note" if is_small else "ok",
        advice="Process lanes here do not need it; a DataLoader's workers and Ray do: docker run --shm-size=1g."
        if is_small
        else "",
    )


def versions() -> list[Finding]:
    """Python, the packages that matter, the extras that are not there."""
    found = [
        Finding(
            what="Python",
            found=f"{platform.python_version()}, {_gil()}, {platform.system()} {platform.release()}",
            verdict="ok" if sys.platform.startswith("linux") else "note",
            advice="" if sys.platform.startswith("linux") else "Process lanes need Linux; threads and Ray work here.",
        ),
        Finding(what="packages", found=", ".join(f"{name} {_version(name) or 'missing'}" for name in _PACKAGES)),
    ]
    absent = [extra for extra, package in _EXTRAS.items() if importlib.util.find_spec(package) is None]
    there = [f"{extra} ({_EXTRAS[extra]} {_version(_EXTRAS[extra])})" for extra in _EXTRAS if extra not in absent]
    advice = f"Where you need them: pip install 'lightning-intune[{','.join(absent)}]'" if absent else ""
    found.append(
        Finding(what="extras", found=", ".join(there) or "none", verdict="note" if absent else "ok", advice=advice)
    )
    return found


def _gil() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "with the GIL"
    is_on: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return "free-threaded, the GIL " + ("switched on again by a module" if is_on() else "off")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def limits() -> list[Finding]:
    """What a long run needs of the process: open files, threads of native libraries, how processes start."""
    import multiprocessing

    found: list[Finding] = []
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        is_few = soft != resource.RLIM_INFINITY and soft < _LEAST_FILES
        advice = f"Raise it where you start the job: ulimit -n {_LEAST_FILES}" if is_few else ""
        found.append(
            Finding(what="open files", found=f"{soft} of {hard}", verdict="note" if is_few else "ok", advice=advice)
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    found.append(
        Finding(
            what="native threads",
            found=f"OMP_NUM_THREADS={threads or 'unset'}",
            verdict="ok" if threads == "1" else "note",
            advice=""
            if threads == "1"
            else "Functions of thread lanes that call torch or BLAS may each start threads of their own: "
            "OMP_NUM_THREADS=1 leaves the parallelism to the stages (not for a model that trains on the CPU).",
        )
    )
    method = multiprocessing.get_start_method(allow_none=True) or "not set yet"
    ours = "a fork server of our own" if sys.platform.startswith("linux") else "none here"
    found.append(Finding(what="start method", found=f"multiprocessing: {method}; process lanes: {ours}"))
    return found


def disk(path: Path) -> Finding:
    """The filesystem under a path: its kind, its room, and whether reads wait for a network."""
    stats = os.statvfs(path)
    kind = _filesystem_of(path)
    is_remote = kind.startswith(_NETWORK)
    return Finding(
        what=f"disk of '{path}'",
        found=f"{kind}, {stats.f_bavail * stats.f_frsize / _GIB:.1f} GiB free",
        verdict="note" if is_remote else "ok",
        advice="Reads wait for a network: let the tuner widen 'read' beyond the CPUs, and set "
        "on_error={'read': retry(3)}."
        if is_remote
        else "",
    )


def _filesystem_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    # The line whose mount point is the longest part of the path. Source: proc_pid_mountinfo(5).
    best, kind = "", "unknown kind"
    target = str(path.resolve())
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


# ---- whether it works ----


def lanes(*, with_ray: bool) -> list[Finding]:
    """One item through a stage on each kind of lane, with the time it took."""
    methods = ["thread", *(["process"] if sys.platform.startswith("linux") else []), *(["ray"] if with_ray else [])]
    return [try_lane(method, math.factorial) for method in methods]


def try_lane(method: Any, function: Callable[[int], int]) -> Finding:
    """Whether `function` of 5, run on a new lane of that kind, is 120."""
    from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource

    began_s = time.perf_counter()
    try:
        stage = ElasticMapper(IterableSource([5]), function, 1, method=method, name="doctor", timeout_s=60.0)
        with ElasticLoader(stage) as loader:
            out = list(loader)
        if out != [120]:
            raise RuntimeError(f"it gave {out} instead of [120]")  # noqa: TRY301 - told like any other failure
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the user wants to know
        words = " ".join(str(error).split())[:300]
        return Finding(what=f"{method} lane", found=f"failed: {words}", verdict="bad", advice=_CURES.get(method, ""))
    return Finding(
        what=f"{method} lane", found=f"works, first item after {(time.perf_counter() - began_s) * 1e3:.0f} ms"
    )


_CURES = {
    "process": "Use method='thread'. Process lanes need memfd_create, pidfd_open and Unix sockets: a container's "
    "seccomp profile may forbid them.",
    "ray": "Use method='process', or pip install 'lightning-intune[ray]' and see that `ray status` shows free CPUs.",
}


def _show(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="lightning-intune doctor", show_lines=False)
    for name in ("", "what", "found", "what to change"):
        table.add_column(name, overflow="fold")
    for finding in found:
        mark = Text.from_markup(_MARK[finding.verdict])
        table.add_row(mark, Text(finding.what), Text(finding.found), Text(finding.advice))
    Console().print(table)
