"""The live contest: real threads, real meters, and the best static widths found by trying them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.result import put
from benchmarks.tuner_parts.pipelines import KINDS, Kind, LivePipeline
from benchmarks.tuner_parts.sweep import Swept, Widths, effort, paired, standing, sweep
from lightning_intune.control import Budget, Decision, Tuner, make_agent


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One agent's run on one pipeline."""

    decisions: list[Decision]
    widths: Widths
    seconds: float


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


def reached(tuned: Tuned, best_rate: float, share: float = 0.95, *, since_s: float = 0.0) -> tuple[float, float]:
    """(turns, seconds) until a turn's rate was `share` of the best; (turns made + 1, all seconds) if none was.

    Turns that began before `since_s` count as turns but say nothing: their rate is partly that of before.
    """
    first = tuned.decisions[0].time_s - tuned.decisions[0].turn_s if tuned.decisions else 0.0
    for turn, decision in enumerate(tuned.decisions):
        began_s = decision.time_s - decision.turn_s
        if began_s >= since_s and decision.samples_per_s >= share * best_rate:
            return float(turn), began_s - first
    return float(len(tuned.decisions) + 1), tuned.seconds


def one_sided_bound(values: Sequence[float]) -> float:
    """Lower 95 % bound of the mean, by bootstrap.

    Where the start is already the best there is, the true ratio is 1 and the bound lies below it by the noise of the
    pairs: 0.99 says that at most one percent can have been lost, not that any was.
    """
    rng = np.random.default_rng(0)
    draws = np.array(values)[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    return float(np.percentile(draws, 5))


RIVAL_S = 5.0
"""Ten turns for a rival; ours runs longer, so that its seconds to 95 % are seen."""


def contest(quick: bool, rivals: Sequence[str], kinds: Sequence[Kind] = KINDS) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the keys under `live`, what the plots and the fidelity need) for each of the pipelines."""
    live: dict[str, Any] = {}
    raw: dict[str, Any] = {}
    seconds, slice_s, pairs = (1.2, 0.03, 2) if quick else (8.0, 0.3, 12)
    for kind in kinds:
        pipeline = LivePipeline(kind, settle_s=0.04 if quick else 0.1)
        try:
            swept = sweep(pipeline, slice_s, **effort(quick))
            # The machine's speed drifts within minutes: what a turn reached is compared with the best just before and
            # after the run, not with that of the pairs, which come when the rivals have run too.
            beside = standing(pipeline, swept.best, pairs // 2, slice_s)
            runs = {"dqn": tune(pipeline, "dqn", seconds, turn_s=0.25 if quick else 0.5)}
            beside += standing(pipeline, swept.best, pairs // 2, slice_s)
            for name in () if quick else rivals:
                runs[name] = tune(pipeline, name, RIVAL_S)
            live[kind.name] = _figures(pipeline, swept, runs["dqn"], pairs, slice_s, float(np.median(beside)))
            live[kind.name]["rivals"] = {
                name: float(np.median(paired(pipeline, run.widths, swept.best, pairs // 3, slice_s)[0]))
                for name, run in runs.items()
                if name != "dqn"
            }
            live[kind.name]["rival_widths"] = {name: list(run.widths) for name, run in runs.items() if name != "dqn"}
            raw[kind.name] = {"sweep": swept, "runs": runs, "best_rate": live[kind.name]["best_rate_beside"]}
        finally:
            pipeline.close()
    return live, raw


def _figures(
    pipeline: LivePipeline, swept: Swept, ours: Tuned, pairs: int, slice_s: float, best_beside: float
) -> dict[str, Any]:
    figures: dict[str, Any] = {"widths": list(ours.widths), "best_widths": list(swept.best)}
    if pipeline.kind.memory_bytes is not None:
        figures["memory_violations"] = _violations(pipeline, ours)
    shares, bests = paired(pipeline, ours.widths, swept.best, pairs, slice_s)
    put(figures, "share_of_best", shares)
    put(figures, "best_rate", bests)
    start, _ = paired(pipeline, ours.widths, [1] * len(pipeline.knobs), pairs, slice_s)
    put(figures, "end_over_start", start)
    figures["end_over_start_bound"] = one_sided_bound(start)
    figures["turns_to_95pct"], figures["seconds_to_95pct"] = reached(ours, best_beside)
    figures["best_rate_beside"] = best_beside
    figures["turns"] = len(ours.decisions)
    figures["trace"] = trace(ours, best_beside)
    return figures


def _violations(pipeline: LivePipeline, tuned: Tuned) -> int:
    """Turns at widths whose full buffers would exceed the kind's memory."""
    each = {s.name: s.item_bytes * s.max_in_flight / max(1, s.live_workers) for s in pipeline.read().stages}
    limit = pipeline.kind.memory_bytes or float("inf")
    return sum(sum(each[name] * width for name, width in d.widths.items()) > limit for d in tuned.decisions)


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
