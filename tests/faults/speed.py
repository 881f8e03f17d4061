"""How many items a pipeline that does next to nothing hands over per CPU second of its processes, old and fresh.

Wall-clock speed of a shared machine says more about its neighbours, so CPU seconds of this process and of its worker
processes are counted. Even these depend on what else the cores and caches are used for. So a soaked process is compared
with one that has just begun, in turns: `python -m tests.faults.speed` answers each line with one such figure.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import psutil

from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource
from tests.faults import functions

ROOT = Path(__file__).parents[2]
_NUM_ITEMS = 40_000
_NUM_TURNS = 15


@final
@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Items per CPU second, medians; `ratio` is the median of the turns' own ratios, soaked over fresh."""

    soaked: float
    fresh: float
    ratio: float


def items_per_cpu_s() -> float:
    """Of one pass through a stage of threads, one of processes, and a prefetcher."""
    node = ElasticMapper(IterableSource(range(_NUM_ITEMS)), functions.same, 2, method="process", name="probe")
    with ElasticLoader(ElasticPrefetcher(ElasticMapper(node, functions.same, 2), 8)) as loader:
        items = iter(loader)
        next(items)  # the processes are there now
        began_s, count = _cpu_s(), 0
        for _ in range(_NUM_ITEMS - 2):  # the last one is left: they live on until their CPU is read
            next(items)
            count += 1
        return count / (_cpu_s() - began_s)


def compared() -> Speeds:
    """This process and a fresh one, turn by turn."""
    pairs = list[tuple[float, float]]()
    with _fresh_process() as fresh:
        for _ in range(_NUM_TURNS):
            pairs.append((items_per_cpu_s(), fresh()))
    return Speeds(
        soaked=statistics.median(ours for ours, _ in pairs),
        fresh=statistics.median(theirs for _, theirs in pairs),
        ratio=statistics.median(ours / theirs for ours, theirs in pairs),
    )


def _cpu_s() -> float:
    # A spare of an earlier scenario may end while we look; what it took is then in its parent's account.
    total_s = 0.0
    for member in (*psutil.Process().children(recursive=True), psutil.Process()):
        with suppress(psutil.NoSuchProcess):
            total_s += sum(member.cpu_times()[:4])
    return total_s


@contextmanager
def _fresh_process() -> Iterator[Callable[[], float]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.speed"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    ask, answer = process.stdin, process.stdout

    def fresh() -> float:
        ask.write("go\n")
        ask.flush()
        return float(answer.readline())

    try:
        fresh()  # imports, the fork server
        yield fresh
    finally:
        ask.close()
        process.wait()
        answer.close()


if __name__ == "__main__":
    for _ in sys.stdin:
        sys.stdout.write(f"{items_per_cpu_s()}\n")
        sys.stdout.flush()
