"""One rank of the measured part: trains every case over gloo, in the three ways by turns. Run as a program."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.overlap_parts.contestants import WAYS, contestant
from benchmarks.overlap_parts.waits import Waits, board_at
from benchmarks.overlap_parts.workload import CASES, Case, Sample, batches

SETTLED, LEFT = 4, 2
"""Steps before those that are measured, and behind them: TorchRec's pipeline takes two batches ahead."""


def run(data: list[Sample], case: Case, way: str, waits: Waits) -> dict[str, Any]:
    """Means over the measured steps, in seconds: a step, its CPU time, and what `Waits.split_s` says."""
    one = contestant(way, case, waits)
    iterator = iter(data)
    losses = [float(one.progress(iterator)) for _ in range(SETTLED)]
    dist.barrier()
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    num_steps = len(data) - SETTLED - LEFT
    losses += [float(one.progress(iterator)) for _ in range(num_steps)]
    ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
    losses += [float(one.progress(iterator)) for _ in range(LEFT)]
    assert one.shutdown()
    dist.barrier()
    sums = {"step_s": ended_s - begun_s, "cpu_s": ended_cpu_s - begun_cpu_s, **waits.split_s(begun_s, ended_s)}
    return {key: seconds / num_steps for key, seconds in sums.items()} | {"losses": losses}


def main() -> None:
    """RANK WORLD_SIZE STORE NUM_STEPS REPEATS CASE,CASE...: by case and repeat the three ways, as JSON."""
    rank, world_size, store, num_steps, repeats, names = sys.argv[1:7]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    out: dict[str, Any] = {name: [] for name in names.split(",")}
    for repeat in range(int(repeats)):
        for name, runs in out.items():
            data = batches(CASES[name], int(rank), int(num_steps) + SETTLED + LEFT)
            turn = repeat % len(WAYS)
            found: dict[str, dict[str, Any]] = {}
            for way in (*WAYS[turn:], *WAYS[:turn]):
                board = board_at(Path(f"{store}-{repeat}-{name}-{way}"), int(world_size))
                found[way] = run(data, CASES[name], way, Waits(rank=int(rank), board=board))
            assert found["waiting"]["losses"] == found["ours"]["losses"], "our two ways train the same, bit for bit"
            runs.append(found)
    sys.stdout.write(json.dumps(out) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
