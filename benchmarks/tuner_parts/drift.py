"""After a shift, live: a stage that becomes four times slower, and half the CPUs taken away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.result import put
from benchmarks.tuner_parts import work
from benchmarks.tuner_parts.live import Tuned, reached, trace
from benchmarks.tuner_parts.pipelines import Kind, LivePipeline
from benchmarks.tuner_parts.sweep import effort, paired, sweep
from lightning_intune.control import Budget, Decision, Tuner, make_agent

_RUNS = 3


@contextmanager
def affinity(cpus: set[int]) -> Iterator[None]:
    """All threads of this process on `cpus` for a while; new threads inherit it."""
    before = os.sched_getaffinity(0)
    _pin(cpus)
    try:
        yield
    finally:
        _pin(before)


def _pin(cpus: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:  # it has just ended
            continue


class Slowable:
    """A stage whose work can be made `factor` times longer while it runs."""

    def __init__(self, once: Callable[[Any], Any]) -> None:
        self._once, self.factor = once, 1

    def __call__(self, item: Any) -> Any:
        for _ in range(self.factor):
            self._once(item)
        return item


def drift(quick: bool) -> dict[str, Any]:
    """Turns back to 95 % of the new best, live: a latency-bound read 4 times slower, and half the CPUs gone.

    Medians of several runs: one more turn at 94 or 95 % of the best is a matter of what else the machine does.
    """
    out: dict[str, Any] = {}
    slow = Slowable(work.waiting(10))
    stages = [("read", slow), ("decode", work.native(2))]
    kind = Kind(name="slow_stage", stages=lambda: stages, sweep=((12, 20, 28, 36, 44), (1, 2, 3)))
    out["live_slow_stage"] = _several(kind, lambda factor: setattr(slow, "factor", factor), 4, None, quick)
    cpus = sorted(os.sched_getaffinity(0))
    kind = Kind(
        name="half_cpus",
        stages=lambda: [("read", work.waiting(10)), ("decode", work.native(3)), ("collate", work.native(1))],
        sweep=((1, 2, 3, 4, 6), (1, 2), (1, 2)),
    )
    half = set(cpus[: max(1, len(cpus) // 2)])
    out["live_half_cpus"] = _several(kind, lambda _: None, 1, half, quick)
    return out


def _several(
    kind: Kind, change: Callable[[int], Any], factor: int, cpus: set[int] | None, quick: bool
) -> dict[str, Any]:
    """`change(1)` before each run, and `change(factor)` on `cpus` in its midst."""
    runs = list[dict[str, Any]]()
    for _ in range(1 if quick else _RUNS):
        change(1)
        runs.append(_drifted(kind, lambda: change(factor), cpus, quick))
    figures = {key: [run[key] for run in runs] for key in ("widths", "best_widths")}
    put(figures, "share_of_new_best", [share for run in runs for share in run["shares"]])
    put(figures, "turns_to_95pct", [run["turns"] for run in runs])
    return figures | {"runs": len(runs), "traces": [run["trace"] for run in runs]}


def _drifted(kind: Kind, change: Callable[[], Any], cpus: set[int] | None, quick: bool) -> dict[str, Any]:
    before_s, after_s, slice_s, pairs = (1.2, 1.5, 0.04, 2) if quick else (5.0, 6.0, 0.3, 8)
    pipeline = LivePipeline(kind, settle_s=0.04 if quick else 0.1)
    everything = os.sched_getaffinity(0)
    try:
        tuner = Tuner(agent=make_agent("dqn"), knobs=pipeline.knobs, budget=Budget(), turn_interval_s=0.5)
        _advance(pipeline, tuner, before_s)
        change()
        with affinity(cpus or everything):
            changed_s = time.monotonic()  # the tuner's clock
            decisions = _advance(pipeline, tuner, after_s)
            swept = sweep(pipeline, slice_s, **effort(quick))
            widths = tuple(tuner.widths.values())
            shares, bests = paired(pipeline, widths, swept.best, pairs, slice_s)
        tuned = Tuned(decisions=decisions, widths=widths, seconds=after_s)
        best_rate = float(np.median(bests))
        figures: dict[str, Any] = {"widths": list(widths), "best_widths": list(swept.best), "shares": shares}
        figures["turns"] = reached(tuned, best_rate, since_s=changed_s)[0]
        return figures | {"trace": trace(tuned, best_rate)}
    finally:
        pipeline.close()


def _advance(pipeline: LivePipeline, tuner: Tuner, seconds: float) -> list[Decision]:
    began, decisions = time.perf_counter(), list[Decision]()
    while time.perf_counter() - began < seconds:
        pipeline.advance()
        decision = tuner.step(pipeline.read)
        if decision is not None:
            decisions.append(decision)
    return decisions
