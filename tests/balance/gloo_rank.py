"""One rank of the tests over gloo: run as a program, prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lightning_intune.balance import BalancedExchange, CostModel, RankBatch
from lightning_intune.flow import IterableSource

Sample = tuple[int, int, list[float]]
"""Rank, place, and a sequence of numbers."""


def samples_of(rank: int, count: int) -> list[Sample]:
    rng = np.random.default_rng(rank)
    lengths = rng.lognormal(2, 1, count).astype(int) + 1
    return [(rank, place, rng.standard_normal(length).tolist()) for place, length in enumerate(lengths)]


def exchange(rank: int, **settings: Any) -> BalancedExchange[Sample]:
    settings = {"batch_size": 4, "window": 3, "timeout_s": 30.0, "cost": CostModel(quadratic=0.1), **settings}
    source = IterableSource(samples_of(rank, 21 + 6 * rank))
    return BalancedExchange(source, length=lambda sample: len(sample[2]), **settings)


def gradients(batches: list[RankBatch[Sample]]) -> list[list[float]]:
    """A small model's gradients after DDP's all-reduce, step by step, its loss scaled by the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    ddp = nn.parallel.DistributedDataParallel(model)
    seen: list[list[float]] = []
    for batch in batches:
        ddp.zero_grad()
        losses = [ddp(torch.tensor(s[2], dtype=torch.float64)[:, None]).square().sum() for s in batch.samples]
        (torch.stack(losses).sum() * batch.loss_scale).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        seen.append(torch.cat([grad.flatten() for grad in grads]).tolist())
    return seen


def train(rank: int) -> dict[str, Any]:
    """The same steps unbalanced and in every mode, their gradients, and a resume in the middle."""
    out: dict[str, Any] = {}
    for mode in ("off", "local", "reservoir", "global"):
        batches = list(exchange(rank, mode=mode))
        ids = [[] if batch.is_padding else [list(s[:2]) for s in batch.samples] for batch in batches]
        out[mode] = {"ids": ids, "gradients": gradients(batches)}
        half = exchange(rank, mode=mode)
        list(islice(half, 4))
        state = [half.state_dict()]
        half.shutdown()
        dist.broadcast_object_list(state, src=0)  # as Lightning does: every rank loads rank 0's
        rest = exchange(rank, mode=mode)
        rest.reset(state[0])
        out[mode]["resumed"] = [[] if b.is_padding else [list(s[:2]) for s in b.samples] for b in rest]
    return out


def main() -> None:
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    sys.stdout.write(json.dumps(train(rank)) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
