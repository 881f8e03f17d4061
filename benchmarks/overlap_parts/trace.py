"""One rank of the traced part: some steps of the headline's case in each way, rank 0's spans as JSON. A program."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from benchmarks.overlap_parts.contestants import WAYS, contestant
from benchmarks.overlap_parts.measured import HEADLINE
from benchmarks.overlap_parts.spans import Recorder
from benchmarks.overlap_parts.waits import Waits, board_at
from benchmarks.overlap_parts.workload import CASES, batches
from benchmarks.ranks import run_ranks

_SETTLED, _LEFT = 4, 2


def traced(num_steps: int) -> dict[str, Any]:
    """By way, what rank 0 of 2 did: `spans`, and `steps`, the traced ones' begin and end; seconds from the first.

    Twice `num_steps` are traced, the ways there and back.
    """
    return run_ranks("benchmarks.overlap_parts.trace", 2, num_steps, limit_s=300)[0]


def typical_step(found: dict[str, Any]) -> tuple[float, float]:
    """Begin and end of the step that is nearest to the medians of length and of waiting, both by their ratio.

    >>> spans = [{"name": "waiting", "begun_s": float(at), "ended_s": at + 1.0} for at in (0, 3)]
    >>> typical_step({"spans": spans, "steps": [[0.0, 3.0], [3.0, 6.0], [6.0, 10.0]]})
    (0.0, 3.0)
    """
    steps: list[tuple[float, float]] = [(begun_s, ended_s) for begun_s, ended_s in found["steps"]]
    lengths = [ended_s - begun_s for begun_s, ended_s in steps]
    waits = [waited_s(found["spans"], *step) for step in steps]

    def off(values: list[float], place: int) -> float:
        return abs(values[place] / max(statistics.median(values), 1e-4) - 1)

    return steps[min(range(len(steps)), key=lambda place: off(lengths, place) + off(waits, place))]


def waited_s(spans: list[dict[str, Any]], begun_s: float, ended_s: float) -> float:
    """Between the two, for rows and gradients."""
    return sum(
        max(0.0, min(span["ended_s"], ended_s) - max(span["begun_s"], begun_s))
        for span in spans
        if span["name"] == "waiting"
    )


def _trace(way: str, rank: int, num_steps: int, board: NDArray[np.float64]) -> dict[str, Any]:
    case, recorder = CASES[HEADLINE], Recorder()
    one = contestant(way, case, Waits(rank=rank, board=board))
    recorder.watch(one)
    iterator = iter(batches(case, rank, _SETTLED + num_steps + _LEFT))
    with recorder.exchanges(overlap=way == "ours"):
        for _ in range(_SETTLED + num_steps + _LEFT):
            one.progress(iterator)
        assert one.shutdown()
    recorder.take(one)
    begins = recorder.steps[-num_steps - _LEFT : len(recorder.steps) - _LEFT + 1]
    first_s, last_s = begins[0], begins[-1]
    spans = [
        asdict(span) | {"begun_s": max(span.begun_s, first_s) - first_s, "ended_s": min(span.ended_s, last_s) - first_s}
        for span in sorted(recorder.spans, key=lambda span: span.begun_s)
        if span.ended_s > first_s and span.begun_s < last_s
    ]
    steps = [[begun_s - first_s, ended_s - first_s] for begun_s, ended_s in pairwise(begins)]
    return {"spans": spans, "steps": steps}


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The second behind the first."""
    gap_s = first["steps"][-1][1] - second["steps"][0][0]
    moved = [
        span | {"begun_s": span["begun_s"] + gap_s, "ended_s": span["ended_s"] + gap_s} for span in second["spans"]
    ]
    steps = [[begun_s + gap_s, ended_s + gap_s] for begun_s, ended_s in second["steps"]]
    return {"spans": [*first["spans"], *moved], "steps": [*first["steps"], *steps]}


def main() -> None:
    """RANK WORLD_SIZE STORE NUM_STEPS."""
    rank, world_size, store, num_steps = sys.argv[1:5]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    found: dict[str, dict[str, Any]] = {}
    for way in (*WAYS, *reversed(WAYS)):  # there and back: what trains last in a process may fare otherwise
        board = board_at(Path(f"{store}-{way}-{way in found}"), int(world_size))
        traced = _trace(way, int(rank), int(num_steps), board)
        found[way] = _joined(found[way], traced) if way in found else traced
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
