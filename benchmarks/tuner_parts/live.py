"""The live contest: real threads, real meters, and the best static widths found by trying them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.result import put
from benchmarks.tuner_parts import work
from benchmarks.tuner_parts.pipelines import KINDS, Kind, LivePipeline
from lightning_intune.control import Budget, Decision, Tuner, make_agent

Widths = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The best static widths of a pipeline, and what every tried setting gave."""

    best: Widths
    rates: dict[Widths, float]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One agent's run on one pipeline."""

    decisions: list[Decision]
    widths: Widths
    seconds: float


def sweep(pipeline: LivePipeline, seconds: float, rounds: int, stride: int = 1) -> Swept:
    """Every `stride`-th setting of the kind's grid once, then the four best in turn; the median of `rounds` decides."""
    rates = {}
    for widths in list(product(*pipeline.kind.sweep))[::stride]:
        pipeline.set_widths(widths)
        rates[widths] = pipeline.rate(seconds)
    leaders = sorted(rates, key=lambda w: -rates[w])[:4]
    tried: dict[Widths, list[float]] = {widths: [] for widths in leaders}
    for _ in range(rounds):
        for widths in leaders:
            pipeline.set_widths(widths)
            tried[widths].append(pipeline.rate(seconds))
    best = max(leaders, key=lambda w: float(np.median(tried[w])))
    return Swept(best=best, rates=rates)


def tune(pipeline: LivePipeline, name: str, seconds: float, *, turn_s: float = 0.5) -> Tuned:
    """`name` from width 1 for `seconds`."""
    pipeline.set_widths([1] * len(pipeline.knobs))
    pipeline.rate(0.1)
    budget = budget_of(pipeline)
    tuner = Tuner(agent=make_agent(name), knobs=pipeline.knobs, budget=budget, turn_interval_s=turn_s)  # type: ignore[arg-type]
    decisions: list[Decision] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        pipeline.advance()
        decision = tuner.step(pipeline.read)
        if decision is not None:
            decisions.append(decision)
    widths = tuple(tuner.widths.values())
    return Tuned(decisions=decisions, widths=widths, seconds=time.perf_counter() - began)


def budget_of(pipeline: LivePipeline) -> Budget:
    """The machine's, with the kind's own limit on memory."""
    if pipeline.kind.memory_bytes is None:
        return Budget()
    return Budget(memory_limit_bytes=Budget().read().memory_bytes + pipeline.kind.memory_bytes)


def ratios(
    pipeline: LivePipeline, ours: Sequence[int], theirs: Sequence[int], pairs: int, seconds: float
) -> list[float]:
    """Rate at `ours` over rate at `theirs`, pair by pair, in alternating order, on the running pipeline."""
    found: list[float] = []
    for pair in range(pairs):
        rates = {}
        for side in ((0, 1), (1, 0))[pair % 2]:
            pipeline.set_widths((ours, theirs)[side])
            rates[side] = pipeline.rate(seconds)
        found.append(rates[0] / rates[1])
    return found


def reached(tuned: Tuned, best_rate: float, share: float = 0.95) -> tuple[float, float]:
    """(turns, seconds) until a turn's rate was `share` of the best; (turns made + 1, all seconds) if none was."""
    first = tuned.decisions[0].time_s - tuned.decisions[0].turn_s if tuned.decisions else 0.0
    for turn, decision in enumerate(tuned.decisions):
        if decision.samples_per_s >= share * best_rate:
            return float(turn), decision.time_s - decision.turn_s - first
    return float(len(tuned.decisions) + 1), tuned.seconds


def one_sided_bound(values: Sequence[float]) -> float:
    """Lower 95 % bound of the mean, by bootstrap."""
    rng = np.random.default_rng(0)
    draws = np.array(values)[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return float(np.percentile(draws, 5))


RIVAL_S = 5.0
"""Ten turns for a rival; ours runs longer, so that its seconds to 95 % are seen."""


def contest(quick: bool, rivals: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the keys under `live`, what the plots and the fidelity need) for each of the eight pipelines."""
    live: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    seconds, slice_s, pairs = (1.2, 0.03, 2) if quick else (8.0, 0.25, 6)
    for kind in KINDS:
        pipeline = LivePipeline(kind)
        try:
            swept = sweep(pipeline, slice_s, 1 if quick else 4, 4 if quick else 1)
            runs = {"dqn": tune(pipeline, "dqn", seconds, turn_s=0.25 if quick else 0.5)}
            for name in () if quick else rivals:
                runs[name] = tune(pipeline, name, RIVAL_S)
            live[kind.name] = _figures(pipeline, swept, runs["dqn"], pairs, slice_s)
            live[kind.name]["rivals"] = {
                name: float(np.median(ratios(pipeline, run.widths, swept.best, pairs // 2, slice_s)))
                for name, run in runs.items()
                if name != "dqn"
            }
            raw[kind.name] = {"sweep": swept, "runs": runs, "best_rate": live[kind.name]["best_rate"]}
        finally:
            pipeline.close()
    return live, raw


def _figures(pipeline: LivePipeline, swept: Swept, ours: Tuned, pairs: int, slice_s: float) -> dict[str, Any]:
    ones = [1] * len(pipeline.knobs)
    figures: dict[str, Any] = {"widths": list(ours.widths), "best_widths": list(swept.best)}
    put(figures, "share_of_best", ratios(pipeline, ours.widths, swept.best, pairs, slice_s))
    start = ratios(pipeline, ours.widths, ones, pairs, slice_s)
    put(figures, "end_over_start", start)
    figures["end_over_start_bound"] = one_sided_bound(start)
    pipeline.set_widths(swept.best)
    put(figures, "best_rate", [pipeline.rate(slice_s) for _ in range(3)])
    figures["turns_to_95pct"], figures["seconds_to_95pct"] = reached(ours, figures["best_rate"])
    figures["turns"] = len(ours.decisions)
    figures["trace"] = trace(ours, figures["best_rate"])
    return figures


def trace(tuned: Tuned, best_rate: float) -> list[dict[str, Any]]:
    """Turn by turn what explains a miss: widths, rate over the best, what was asked and why, CPUs left and used."""
    return [
        {
            "turn_s": round(decision.turn_s, 3),
            "widths": list(decision.widths.values()),
            "asked": list(decision.asked.values()),
            "proposal": [stage.proposal for stage in decision.stages],
            "share": round(decision.samples_per_s / best_rate, 3),
            "roofline_share": round(decision.roofline_share, 3),
            "why": decision.why,
            "shifted": decision.shifted,
            "wait_share": round(decision.wait_share, 3),
            "cpu_used": round(decision.cpu_used, 2),
            "memory_mb": decision.memory_bytes >> 20,
        }
        for decision in tuned.decisions
    ]


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
    """Turns back to 95 % of the new best, live: a latency-bound read 4 times slower, and half the CPUs gone."""
    before_s, after_s, slice_s = (1.2, 1.5, 0.04) if quick else (5.0, 6.0, 0.25)
    out: dict[str, Any] = {}
    slow = Slowable(work.waiting(10))
    stages = [("read", slow), ("decode", work.native(2))]
    kind = Kind(name="slow_stage", stages=lambda: stages, sweep=((4, 6, 8, 12, 16, 24), (1, 2, 3)))
    out["live_slow_stage"] = _drifted(kind, lambda: setattr(slow, "factor", 4), None, before_s, after_s, slice_s)
    cpus = sorted(os.sched_getaffinity(0))
    kind = Kind(
        name="half_cpus",
        stages=lambda: [("read", work.waiting(10)), ("decode", work.native(3)), ("collate", work.native(1))],
        sweep=((1, 2, 3, 4, 6), (1, 2), (1, 2)),
    )
    half = set(cpus[: max(1, len(cpus) // 2)])
    out["live_half_cpus"] = _drifted(kind, lambda: None, half, before_s, after_s, slice_s)
    return out


def _drifted(
    kind: Kind, change: Any, cpus: set[int] | None, before_s: float, after_s: float, slice_s: float
) -> dict[str, Any]:
    pipeline = LivePipeline(kind)
    everything = os.sched_getaffinity(0)
    try:
        tuner = Tuner(agent=make_agent("dqn"), knobs=pipeline.knobs, budget=Budget(), turn_interval_s=0.5)
        _advance(pipeline, tuner, before_s)
        change()
        with affinity(cpus or everything):
            decisions = _advance(pipeline, tuner, after_s)
            swept = sweep(pipeline, slice_s, 2, 3 if slice_s < 0.1 else 1)
            pipeline.set_widths(swept.best)
            best_rate = pipeline.rate(2 * slice_s)
            widths = tuple(tuner.widths.values())
            share = float(np.median(ratios(pipeline, widths, swept.best, 3, slice_s)))
        tuned = Tuned(decisions=decisions, widths=widths, seconds=after_s)
        return {"turns_to_95pct": reached(tuned, best_rate)[0], "share_of_new_best": share, "widths": list(widths)}
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
