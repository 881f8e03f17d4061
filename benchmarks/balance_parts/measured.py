"""Real ranks over gloo: how long they wait for each other, with and without balancing.

Ranks share the machine's cores where there are fewer cores than ranks. A rank that waits then lends its core to
another, which no training machine does, so wall time would show no bubble at all. Computing is therefore measured in
the CPU seconds of the training thread: what a rank would take with a core of its own. The bubble of a step is what the
ranks wait for the slowest of them, by those seconds, and the wall seconds that the slowest to get its batch waited for
it before; all of it over the step. Samples per second are by the CPU clock too: a step lasts as long as the largest
CPU time of a rank's whole process (exchange thread, pickling and gloo included), and that wait. The same by the wall
clock stands beside (`throughput_ratio_wall`): true where every rank has a core, flattered towards 1 elsewhere.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from benchmarks.ranks import run_ranks
from benchmarks.result import put

SIGMA = 1.5
SETTLED = 16  # steps until windows are at their full size and the costs are fitted: not counted, in either mode


def measured(world_size: int, num_steps: int, repeats: int) -> dict[str, Any]:
    """`measured.{ranks}`: medians over pairs of runs, mode off and mode global in turn on the same shards."""
    by_rank = run_ranks("benchmarks.balance_parts.rank", world_size, SIGMA, num_steps, repeats, limit_s=280)
    rows: list[dict[str, float]] = []
    for pair in range(repeats):
        off, ours = (_figures([runs[2 * pair + which] for runs in by_rank]) for which in (0, 1))
        rows.append(
            {
                "bubble_random": off["bubble"],
                "bubble_ours": ours["bubble"],
                "cut": 1 - ours["bubble"] / off["bubble"],
                "throughput_ratio": ours["samples_per_s"] / off["samples_per_s"],
                "throughput_ratio_wall": ours["samples_per_s_wall"] / off["samples_per_s_wall"],
                "compute_bubble_random": off["compute_bubble"],
                "compute_bubble_ours": ours["compute_bubble"],
                "batch_wait_share_ours": ours["wait_share"],
                "samples_per_s": ours["samples_per_s"],
            }
        )
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "sigma": SIGMA}
    for key in rows[0]:
        put(figures, key, [row[key] for row in rows])
    return figures


def _figures(ranks: list[dict[str, Any]]) -> dict[str, float]:
    """One run of all ranks. Arrays are [ranks, steps]."""
    compute, process, wait, wall = (
        np.array([rank[key] for rank in ranks])[:, SETTLED:] for key in ("compute_s", "process_s", "wait_s", "wall_s")
    )
    samples = float(np.sum(ranks[0]["samples"][SETTLED:]))
    waited = wait.max(axis=0)
    step = compute.max(axis=0) + waited
    return {
        "bubble": 1 - float(compute.mean(axis=0).sum() / step.sum()),
        "compute_bubble": 1 - float(compute.mean(axis=0).sum() / compute.max(axis=0).sum()),
        "wait_share": float(waited.sum() / step.sum()),
        "samples_per_s": samples / float((process.max(axis=0) + waited).sum()),
        "samples_per_s_wall": samples / float(wall.max(axis=0).sum()),
    }
