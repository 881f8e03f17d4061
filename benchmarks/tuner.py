"""How near the tuner comes to the best widths, beside its rivals: simulated, live, after shifts, and at what cost.

Simulated pipelines come from seeds, ranges, dynamics and three kinds of contention that training never
showed. Live ones are eight pipelines of the flow's own stages; the best static widths are found by trying.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import main, put
from benchmarks.tuner_parts import drift, fidelity, lane_moves, live, plots, simulated
from lightning_intune.control import Budget, SimulatedBudget, SimulatedPipeline, Tuner, make_agent
from lightning_intune.control.worlds import FULL

RESULTS = Path(__file__).parent / "results"
LIVE_RIVALS = ("model", "greedy", "hill", "even", "static", "random", "plain_dqn")


class _BothBudgets:
    """The simulated machine's numbers, at the price of reading the real one's."""

    def __init__(self, pipeline: SimulatedPipeline) -> None:
        self._simulated, self._real = SimulatedBudget(pipeline), Budget()
        self.simulated_s = 0.0

    def read(self) -> Any:
        self._real.read()
        began = time.thread_time()
        reading = self._simulated.read()
        self.simulated_s += time.thread_time() - began
        return reading


def cost(quick: bool) -> dict[str, Any]:
    """CPU milliseconds per turn (budget read included) and microseconds per step without a turn."""
    pipeline = SimulatedPipeline(seed=3, ranges=FULL)
    budget = _BothBudgets(pipeline)
    tuner = Tuner(agent=make_agent("dqn"), knobs=pipeline.knobs, budget=budget, clock=pipeline.clock)
    turns_ms: list[float] = []
    for _ in range(120 if quick else 2000):
        pipeline.advance()
        stats = pipeline.read()
        budget.simulated_s = 0.0
        began = time.thread_time()
        decision = tuner.step(lambda stats=stats: stats)
        spent_s = time.thread_time() - began - budget.simulated_s
        if decision is not None:
            turns_ms.append(1e3 * spent_s)
    idle = Tuner(agent=make_agent("model"), knobs=pipeline.knobs, budget=budget, clock=pipeline.clock)
    idle.step(lambda: stats)
    steps_us: list[float] = []
    for _ in range(5):
        began, count = time.perf_counter(), 5000
        for _ in range(count):
            idle.step(lambda: stats)
        steps_us.append(1e6 * (time.perf_counter() - began) / count)
    figures: dict[str, Any] = {"turn_cpu_ms_mean": float(np.mean(turns_ms[2:])), "turn_stages": len(pipeline.names)}
    put(figures, "turn_cpu_ms", turns_ms)
    put(figures, "step_us", steps_us)
    return figures


def measure(quick: bool) -> dict[str, Any]:
    """All figures; live pipelines last, so that nothing else runs beside them."""
    if not quick and (message := plots.missing()) is not None:
        print(f"benchmarks.tuner: {message}", file=sys.stderr)
    figures = simulated.contest(quick) | {"drift": simulated.drift(quick)} | cost(quick)
    found, raw = live.contest(quick, LIVE_RIVALS)
    figures["live"] = found
    figures["drift"] |= drift.drift(quick)
    figures["lane_moves"] = lane_moves.lane_moves(quick)
    figures |= fidelity.fidelity(raw, quick)
    figures["plots"] = plots.draw(raw, RESULTS) if not quick else []
    figures["runs"] = 1 if quick else 6
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures a reader asks for first."""
    sim = figures["sim"]
    lines = [f"simulated, {sim['num_pipelines']} pipelines, after {sim['turns']} turns: regret % mean / p95"]
    lines += [f"  {'ours':18} {100 * sim['regret_mean']:6.2f} / {100 * sim['regret_p95']:6.2f}"]
    for name, rival in sim["baselines"].items():
        low, high = (100 * bound for bound in sim["advantage_ci"][name])
        lines += [
            f"  {name:18} {100 * rival['regret_mean']:6.2f} / {100 * rival['regret_p95']:6.2f}"
            f"   ours is better by {low:.2f} to {high:.2f}"
        ]
    lines += ["live: share of the best static widths (rivals), turns and seconds to 95 %, end over start"]
    for name, found in figures["live"].items():
        rivals = ", ".join(f"{rival} {share:.2f}" for rival, share in found["rivals"].items())
        lines += [
            f"  {name:16} {found['share_of_best']:.2f} ({rivals})  {found['turns_to_95pct']:.0f} turns, "
            f"{found['seconds_to_95pct']:.1f} s, {found['end_over_start']:.2f}x  "
            f"{found['widths']} / {found['best_widths']}"
        ]
    lines += ["drift: turns back to 95 % of the new best"]
    lines += [f"  {name:16} {found['turns_to_95pct']:.1f}" for name, found in figures["drift"].items()]
    lines += ['method="auto": moves (turn, place), batches/s in threads -> at the end']
    lines += [
        f"  {name:16} {found['moves']}  {found['threads_per_s']:.0f} -> {found['end_per_s']:.0f}"
        for name, found in figures["lane_moves"].items()
    ]
    lines += [
        f"a turn {figures['turn_cpu_ms']:.2f} ms CPU, a step {figures['step_us']:.2f} us",
    ]
    lines += [f"fidelity: median error {100 * figures['fidelity_median_error']:.0f} %"]
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__ or "", measure, table)
