"""One rank of the measured part: trains every case over gloo, in the three ways by turns. Run as a program."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch.distributed as dist

from benchmarks.overlap_parts.contestants import WAYS, contestant
from benchmarks.overlap_parts.rival import Rival
from benchmarks.overlap_parts.workload import CASES, Case, Sample, batches

SETTLED, LEFT = 4, 2
"""Steps before those that are measured, and behind them: TorchRec's pipeline takes two batches ahead."""


def run(data: list[Sample], case: Case, way: str) -> dict[str, Any]:
    """Means over the measured steps, in seconds; `ids_s` is what TorchRec's trainer waits for ids, and not exposed."""
    one = contestant(way, case)

    def ids_s() -> float:
        return one.messages.waited_s("ids") if isinstance(one, Rival) else 0.0

    iterator = iter(data)
    losses = [float(one.progress(iterator)) for _ in range(SETTLED)]
    dist.barrier()
    before = time.perf_counter(), one.waited_s, ids_s(), time.process_time()
    num_steps = len(data) - SETTLED - LEFT
    losses += [float(one.progress(iterator)) for _ in range(num_steps)]
    after = time.perf_counter(), one.waited_s, ids_s(), time.process_time()
    losses += [float(one.progress(iterator)) for _ in range(LEFT)]
    assert one.shutdown()
    keys = "step_s", "exposed_s", "ids_s", "cpu_s"
    means = [(end - begin) / num_steps for begin, end in zip(before, after, strict=True)]
    return dict(zip(keys, means, strict=True)) | {"losses": losses}


def main() -> None:
    """RANK WORLD_SIZE STORE NUM_STEPS REPEATS CASE,CASE...: by case and repeat the three ways, as JSON."""
    rank, world_size, store, num_steps, repeats, names = sys.argv[1:7]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    out: dict[str, Any] = {name: [] for name in names.split(",")}
    for repeat in range(int(repeats)):
        for name, runs in out.items():
            data = batches(CASES[name], int(rank), int(num_steps) + SETTLED + LEFT)
            turn = repeat % len(WAYS)
            found = {way: run(data, CASES[name], way) for way in (*WAYS[turn:], *WAYS[:turn])}
            assert found["waiting"]["losses"] == found["ours"]["losses"], "our two ways train the same, bit for bit"
            runs.append(found)
    sys.stdout.write(json.dumps(out) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
