"""One engine with one setting, measured in a process of its own: `python -m benchmarks.peers_parts.child JSON`."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers_parts.engines import BARE_THREADS, PEERS, PLAIN, Engine
from benchmarks.peers_parts.ours import FIXED, OURS
from benchmarks.peers_parts.work import digest, make_work, num_rows

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (OURS, FIXED, *PEERS, PLAIN, BARE_THREADS)}
_SLICE_S = 0.25
"""Rows are counted in slices this long, for the time until the rate is near its best."""


def main() -> None:
    """Measure what the JSON argument says, and print what was found as the last line."""
    job = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    work = make_work(job["workload"], Path(job["folder"]))
    began_s = time.perf_counter()
    with ENGINES[job["engine"]].open(work, job["setting"]) as batches:
        first = next(batches)
        first_batch_s = time.perf_counter() - began_s
        said = digest(first)  # before the warm-up begins
        found = measure(batches, job["warm_up_s"], job["seconds"])
        found |= {"first_batch_s": first_batch_s, "digest": said, "widths": getattr(batches, "widths", None)}
    print(json.dumps(found), flush=True)
    os._exit(0)  # the figures are out: a peer's threads that outlive their iterator must not hold up the contest


def measure(batches: Iterator[dict[str, Any]], warm_up_s: float, seconds: float) -> dict[str, Any]:
    """Rows/s in the `seconds` after the warm-up, CPU seconds, and when the rate was first near that."""
    first_s = time.perf_counter()
    slices: list[list[float]] = [[0.0, 0.0]]
    rows, rows_before = 0, 0
    opened_s, cpu_before_s = 0.0, 0.0
    while True:
        rows += num_rows(next(batches))
        now_s = time.perf_counter() - first_s
        if now_s - slices[-1][0] >= _SLICE_S:
            slices.append([now_s, rows])
        if opened_s == 0.0 and now_s >= warm_up_s:
            opened_s, rows_before, cpu_before_s = now_s, rows, tree_cpu_s()
        elif opened_s and now_s - opened_s >= seconds:
            break
    cpu_s = tree_cpu_s() - cpu_before_s
    rows_per_s = (rows - rows_before) / (now_s - opened_s)
    return {
        "rows_per_s": rows_per_s,
        "cpu_s_per_mrow": cpu_s / (rows - rows_before) * 1e6,
        "seconds_to_95pct": reached_s(slices, 0.95 * rows_per_s),
    }


def reached_s(slices: list[list[float]], rows_per_s: float) -> float:
    """When a window of four slices first had that rate, in seconds after the first batch; the end if none did.

    >>> reached_s([[0, 0], [1, 10], [2, 20], [3, 60], [4, 100], [5, 140]], 30.0)
    5.0
    """
    for early, late in zip(slices, slices[4:], strict=False):
        if (late[1] - early[1]) / (late[0] - early[0]) >= rows_per_s:
            return float(late[0])
    return float(slices[-1][0])


def tree_cpu_s() -> float:
    """CPU seconds of this process, its living descendants, and those of theirs that have ended."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main()
