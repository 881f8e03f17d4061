"""Real ranks over gloo on a shaped link: how long their trainers wait for rows and gradients, in the three ways."""

from __future__ import annotations

import os
import statistics
from typing import Any

from benchmarks.overlap_parts.contestants import WAYS
from benchmarks.overlap_parts.workload import CASES, DIM, NUM_ROWS, Case
from benchmarks.ranks import run_ranks
from benchmarks.result import put
from lightning_intune.overlap import Link
from lightning_intune.overlap.schedule import Workload, predict

HEADLINE = "sequence-10"
SAME_LOSS = 1e-5
"""How far our losses may be from TorchRec's: it adds gradients up in another order."""
UNSHAPED, UNSHAPED_BARE = "unshaped-10", "unshaped_bare-10"

Runs = list[dict[str, dict[str, float]]]
"""By repeat and way the means over ranks."""


def measured(world_size: int, num_steps: int, repeats: int, names: list[str]) -> dict[str, Any]:
    """`cases`: by name, medians over repeats. `slower_unshaped`: our step over TorchRec's with nothing to hide."""
    ranks = run_ranks("benchmarks.overlap_parts.rank", world_size, num_steps, repeats, ",".join(names), limit_s=1500)
    runs: dict[str, Runs] = {
        name: [_mean([rank[name][repeat] for rank in ranks]) for repeat in range(repeats)] for name in names
    }
    out: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for key, name in (("slower_unshaped", UNSHAPED), ("slower_unshaped_bare", UNSHAPED_BARE)):
        if name not in runs:
            continue  # a quick run
        put(out, key, [pair["ours"]["step_s"] / pair["sync"]["step_s"] for pair in runs[name]])
        own = f"{key}_to_waiting"
        put(out, own, [pair["ours"]["step_s"] / pair["waiting"]["step_s"] for pair in runs[name]])
    # Half of the exchange's own work is waited for where nothing is overlapped.
    exchange_s = 2 * statistics.median(pair["waiting"]["exposed_s"] for pair in runs[UNSHAPED_BARE])
    out["cases"] = {name: _row(CASES[name], world_size, pairs, exchange_s) for name, pairs in runs.items()}
    differ = [pair["loss_difference"]["max"] for pairs in runs.values() for pair in pairs]
    out["max_loss_difference"] = max(differ)
    assert max(differ) <= SAME_LOSS, f"TorchRec's losses and ours differ by {max(differ)}: they train different models"
    return out


def _mean(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    keys = "step_s", "waited_s", "late_s", "ids_s", "cpu_s"
    means = {way: {key: statistics.mean(rank[way][key] for rank in ranks) for key in keys} for way in WAYS}
    for mean in means.values():
        mean["exposed_s"] = mean["waited_s"] - mean["late_s"]
    differ = [
        abs(theirs - ours)
        for rank in ranks
        for theirs, ours in zip(rank["sync"]["losses"], rank["ours"]["losses"], strict=True)
    ]
    return {**means, "loss_difference": {"max": max(differ)}}


def _row(case: Case, world_size: int, pairs: Runs, exchange_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for way in WAYS:
        put(row, f"step_ms_{way}", [1e3 * pair[way]["step_s"] for pair in pairs])
        for part in ("waited", "late", "exposed", "cpu"):
            put(row, f"{part}_ms_{way}", [1e3 * pair[way][f"{part}_s"] for pair in pairs])
        put(row, f"exposed_share_{way}", [pair[way]["exposed_s"] / pair[way]["step_s"] for pair in pairs])
    put(row, "ids_ms_sync", [1e3 * pair["sync"]["ids_s"] for pair in pairs])
    for part in ("exposed", "waited"):
        for key, rival in ((f"ratio_{part}", "sync"), (f"ratio_{part}_to_waiting", "waiting")):
            put(row, key, [pair["ours"][f"{part}_s"] / pair[rival][f"{part}_s"] for pair in pairs])
    put(row, "step_ratio", [pair["ours"]["step_s"] / pair["sync"]["step_s"] for pair in pairs])
    if case.link is not None:
        put(row, "compute_ms", [1e3 * (pair["ours"]["step_s"] - pair["ours"]["waited_s"]) for pair in pairs])
        row["link_ms"] = 1e3 * _link_s(case, case.link, world_size)
        row["is_covered"] = row["compute_ms"] > row["link_ms"]
        if case.layout == "sequence":
            row["predicted"] = _predicted(case, case.link, world_size, pairs, exchange_s)
    return row


def _link_s(case: Case, link: Link, world_size: int) -> float:
    """What it takes to send what may lie behind compute: rows that do not collide, their gradients, ids, marks."""
    crossing = NUM_ROWS * (1 - 1 / world_size)
    sent_bytes = [16 * world_size, 4 * crossing, 2 * crossing, *[(1 - case.collisions) * crossing * 4 * DIM] * 2]
    return sum(link.seconds(round(num_bytes)) for num_bytes in sent_bytes)


def _predicted(case: Case, link: Link, world_size: int, pairs: Runs, exchange_s: float) -> dict[str, float]:
    """Predicted over measured exposure; neither has late ranks in it.

    The model is given the measured compute time and the unshaped exchange's. TorchRec's sequences are foretold as
    `waiting`: it too sends a row and a gradient per id, and waits for both.
    """
    out: dict[str, float] = {}
    for way in WAYS:
        work = Workload(
            compute_s=statistics.median(pair[way]["step_s"] - pair[way]["waited_s"] for pair in pairs),
            num_rows=NUM_ROWS,
            row_bytes=4 * DIM,
            collision_share=case.collisions,
            exchange_s=exchange_s,
        )
        exposed_s = predict(work, link, world_size, overlap=way == "ours").exposed_s
        out[way] = exposed_s / statistics.median(pair[way]["exposed_s"] for pair in pairs)
    return out
