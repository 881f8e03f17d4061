"""One rank of `test_two_processes_agree_over_gloo...`: run as a program, prints what it was given as JSON."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from lightning_intune.flow import EqualSteps, IterableSource


def main() -> None:
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    items = [(rank, number) for number in range(10 + 3 * rank)]

    def make(mode: Any) -> EqualSteps[tuple[int, int]]:
        return EqualSteps(IterableSource(items), mode=mode, window=4, pad=lambda _: (-1, -1))

    drop, pad = make("drop"), make("pad")
    out: dict[str, list[Any]] = {"drop": [], "pad": []}
    step = torch.ones(1)
    for first, second in zip(drop, pad, strict=False):
        out["drop"].append(first)
        out["pad"].append(second)
        dist.all_reduce(step)  # the training's own, on the default group
    out["pad"] += pad

    known = EqualSteps(IterableSource(items), mode="pad", num_items=len(items), window=4, pad=lambda _: (-1, -1))
    out["known"] = [len(known), *known]

    half = make("drop")
    list(islice(half, 6))
    state = [half.state_dict()]
    half.shutdown()
    dist.broadcast_object_list(state, src=0)  # as Lightning does: every rank loads rank 0's
    resumed = make("drop")
    resumed.reset(state[0])
    out["resumed"] = list(resumed)
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
