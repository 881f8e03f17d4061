"""Real ranks over gloo on a shaped link: how long their trainers wait for rows, overlapped and not."""

from __future__ import annotations

import os
import statistics
from typing import Any

from benchmarks.overlap_parts.rank import DIM, LINK, NUM_ROWS
from benchmarks.ranks import run_ranks
from benchmarks.result import put
from lightning_intune.overlap.schedule import Workload, predict

HEADLINE = "10"
COLLISIONS = ("0", "10", "50", "100")


def measured(world_size: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """By case, medians over pairs of runs; `slower_unshaped`: ours over sync, a step, where there is little to hide."""
    ranks = run_ranks("benchmarks.overlap_parts.rank", world_size, num_steps, repeats, limit_s=900)
    out: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "by_collisions": {}}
    unshaped = [_mean([rank["unshaped"][pair] for rank in ranks]) for pair in range(repeats)]
    put(out, "slower_unshaped", [pair["ours"]["step_s"] / pair["sync"]["step_s"] for pair in unshaped])
    exchange_s = 2 * statistics.median(pair["sync"]["exposed_s"] for pair in unshaped)  # half of it is waited for
    for name in COLLISIONS:
        pairs = [_mean([rank[name][pair] for rank in ranks]) for pair in range(repeats)]
        row: dict[str, Any] = {}
        for way in ("sync", "ours"):
            put(row, f"step_ms_{way}", [1e3 * pair[way]["step_s"] for pair in pairs])
            put(row, f"exposed_ms_{way}", [1e3 * pair[way]["exposed_s"] for pair in pairs])
            put(row, f"exposed_share_{way}", [pair[way]["exposed_s"] / pair[way]["step_s"] for pair in pairs])
        put(row, "ratio_exposed", [pair["ours"]["exposed_s"] / pair["sync"]["exposed_s"] for pair in pairs])
        put(row, "step_ratio", [pair["ours"]["step_s"] / pair["sync"]["step_s"] for pair in pairs])
        row["predicted"] = _predicted(world_size, pairs, int(name) / 100, exchange_s)
        out["by_collisions"][name] = row
    return out


def _mean(ranks: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        way: {key: statistics.mean(rank[way][key] for rank in ranks) for key in ("step_s", "exposed_s")}
        for way in ("sync", "ours")
    }


def _predicted(
    world_size: int, pairs: list[dict[str, dict[str, float]]], collisions: float, exchange_s: float
) -> dict[str, float]:
    """Predicted over measured waiting. The model is given the measured compute time and the unshaped exchange's."""
    out: dict[str, float] = {}
    for way in ("sync", "ours"):
        work = Workload(
            compute_s=statistics.median(pair[way]["step_s"] - pair[way]["exposed_s"] for pair in pairs),
            num_rows=NUM_ROWS,
            row_bytes=4 * DIM,
            collision_share=collisions,
            exchange_s=exchange_s,
        )
        exposed_s = predict(work, LINK, world_size, overlap=way == "ours").exposed_s
        out[way] = exposed_s / statistics.median(pair[way]["exposed_s"] for pair in pairs)
    return out
