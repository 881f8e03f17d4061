"""Real ranks over gloo on a shaped link: how long their trainers wait for rows, overlapped and not."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.overlap_parts.rank import DIM, LINK, NUM_ROWS
from benchmarks.result import put
from lightning_intune.overlap.schedule import Workload, predict

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = "10"
COLLISIONS = ("0", "10", "50", "100")


def measured(world_size: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """By case, medians over pairs of runs; `slower_unshaped`: ours over sync, a step, where there is little to hide."""
    ranks = _run(world_size, num_steps, repeats)
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


def _run(world_size: int, num_steps: int, repeats: int) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        settings = [str(world_size), str(Path(folder) / "store"), str(num_steps), str(repeats)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.overlap_parts.rank", str(rank), *settings],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            outputs = [rank.communicate(timeout=900)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"ranks ended with {[rank.returncode for rank in ranks]}; their errors are above")
    return [json.loads(output.splitlines()[-1]) for output in outputs]
