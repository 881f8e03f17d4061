"""One rank of the measured part: trains an attention model over gloo on what an exchange gives it. Run as a program."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_intune.balance import BalancedExchange, CostModel, RankBatch
from lightning_intune.flow import IterableSource

WIDTH, HEADS, VOCABULARY, BATCH_SIZE, WINDOW = 64, 4, 1000, 24, 8
MAX_LENGTH = 1024


class Attention(nn.Module):
    """One layer of self-attention and a perceptron, over one sequence at a time: no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.rest = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, 1))

    def forward(self, sequence: Tensor) -> Tensor:
        """The logit of a sequence [L]."""
        x = self.items(sequence)
        q, k, v = self.qkv(x).view(len(sequence), 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)[:, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).reshape(len(sequence), WIDTH)
        return self.rest(x + mixed).mean()


def shard(rank: int, world_size: int, num_samples: int, sigma: float) -> list[Any]:
    """Lognormal lengths whose median grows with the rank, from 70 to 140: shards are unequal."""
    rng = np.random.default_rng([7, rank])
    median = 70 * 2 ** (rank / max(1, world_size - 1))
    lengths = np.clip(np.rint(median * np.exp(sigma * rng.standard_normal(num_samples))), 4, MAX_LENGTH).astype(int)
    return [torch.from_numpy(rng.integers(0, VOCABULARY, length)) for length in lengths]


def compute(model: nn.Module, batch: RankBatch[Tensor]) -> None:
    """Forward and backward; gradients are those of the loss sum, scaled."""
    for parameter in model.parameters():
        parameter.grad = None
    logits = torch.stack([model(sequence) for sequence in batch.samples])
    losses = nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="sum")
    (losses * batch.loss_scale).backward()


def train(mode: Any, num_steps: int, data: list[Any]) -> dict[str, list[float]]:
    """By step: CPU seconds of computing, of everything this process did, and wall seconds of waiting for the batch."""
    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    exchange = BalancedExchange(
        IterableSource(data),
        length=len,
        batch_size=BATCH_SIZE,
        mode=mode,
        window=WINDOW,
        cost=CostModel(quadratic=0.005),
    )
    batches = iter(exchange)
    out: dict[str, list[float]] = {"compute_s": [], "process_s": [], "wait_s": [], "wall_s": [], "samples": []}
    for _ in range(num_steps):
        wall_0, process_0 = time.perf_counter(), time.process_time()
        batch = next(batches)
        wall_1, cpu_1 = time.perf_counter(), time.thread_time()
        compute(model, batch)
        compute_s = time.thread_time() - cpu_1
        exchange.observe(compute_s)
        # As DDP does, in one bucket: this is where a rank waits for the slowest.
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        dist.all_reduce(flat)
        offset = 0
        for p in model.parameters():
            p.grad = flat[offset : offset + p.numel()].view_as(p) / batch.world_size
            offset += p.numel()
        optimizer.step()
        out["compute_s"].append(compute_s)
        out["process_s"].append(time.process_time() - process_0)
        out["wait_s"].append(wall_1 - wall_0)
        out["wall_s"].append(time.perf_counter() - wall_0)
        out["samples"].append(batch.global_count)
    exchange.shutdown()
    return out


def main() -> None:
    """`rank world_size store sigma steps repeats`: both methods in turn, `repeats` times."""
    rank, world_size, store, sigma = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    num_steps, repeats = int(sys.argv[5]), int(sys.argv[6])
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})  # with as many cores as ranks each has one to itself
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    # Two windows more than are trained on, so that nobody is at the end.
    data = shard(rank, world_size, (num_steps + 3 * WINDOW) * BATCH_SIZE, sigma)
    train("global", 2 * WINDOW, data)  # kernels compiled, caches warm
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        for mode in ("off", "global"):
            dist.barrier()
            runs.append({"mode": mode} | train(mode, num_steps, data))
    sys.stdout.write(json.dumps(runs) + "\n")
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
