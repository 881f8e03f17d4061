"""One rank of the measured part: trains over gloo, overlapped and waiting by turns. Run as a program."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_intune.dedup import KeyedJagged
from lightning_intune.overlap import (
    Adagrad,
    GlooTransport,
    Link,
    OverlappedEmbeddingBagCollection,
    OverlappedTrainPipeline,
    Table,
)

NUM_EMBEDDINGS, DIM, NUM_ROWS, NUM_IDS, BATCH_SIZE, WIDTH = 400_000, 32, 6000, 12_000, 256, 640
DEPTH = 4
"""Layers of the perceptron: real compute, on the CPUs that the exchange needs too."""
LINK = Link(delay_s=2e-4, bytes_per_s=25e6)
SETTLED = 4
TABLE = Table(name="items", num_embeddings=NUM_EMBEDDINGS, embedding_dim=DIM, feature_names=("history",))


@dataclass(frozen=True)
class Sample:
    """A batch."""

    sparse: KeyedJagged
    labels: Tensor


def batches(rank: int, num_steps: int, collisions: float) -> list[Sample]:
    """Of `NUM_ROWS` distinct rows each, `collisions` of which stand in all batches of all ranks."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(NUM_EMBEDDINGS)
    num_hot = round(collisions * NUM_ROWS)
    hot, cold = rows[:num_hot], rows[num_hot:]
    out: list[Sample] = []
    for step in range(num_steps):
        # Ranks share no cold row, and neighbouring steps neither.
        place = ((step % 3) * 8 + rank) * NUM_ROWS
        distinct = np.concatenate([hot, cold[place : place + NUM_ROWS - num_hot]])
        again = np.minimum(rng.zipf(1.3, NUM_IDS - NUM_ROWS), NUM_ROWS) - 1
        ids = torch.from_numpy(rng.permutation(np.concatenate([distinct, distinct[again]])))
        lengths = torch.full((BATCH_SIZE,), NUM_IDS // BATCH_SIZE, dtype=torch.int32)
        lengths[0] += NUM_IDS - int(lengths.sum())
        out.append(Sample(KeyedJagged(["history"], ids, lengths), torch.ones(BATCH_SIZE, 1)))
    return out


class Net(nn.Module):
    """Pooled embeddings through a perceptron of `depth`."""

    def __init__(self, transport: GlooTransport, depth: int) -> None:
        super().__init__()
        self.bags = OverlappedEmbeddingBagCollection([TABLE], Adagrad(lr=0.01), transport=transport)
        inner = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.over = nn.Sequential(nn.Linear(DIM, WIDTH), nn.ReLU(), *inner, nn.Linear(WIDTH, 1))

    def forward(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Loss, and the same detached."""
        pooled = self.bags.pooled(batch.sparse)
        logits = self.over(pooled)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        return loss, loss.detach()


def run(data: list[Sample], transport: GlooTransport, *, overlap: bool, depth: int) -> dict[str, float]:
    """Seconds per step, and of it those waited for rows, behind the first steps."""
    torch.manual_seed(0)
    net = Net(transport, depth)
    pipeline = OverlappedTrainPipeline(net, torch.optim.SGD(net.over.parameters(), lr=0.01), overlap=overlap)
    iterator = iter(data)
    for _ in range(SETTLED):
        pipeline.progress(iterator)
    dist.barrier()
    begun_s, waited_s, num_steps = time.perf_counter(), pipeline.waited_s, len(data) - SETTLED - 2
    for _ in range(num_steps):
        loss = pipeline.progress(iterator)
    step_s = (time.perf_counter() - begun_s) / num_steps
    exposed_s = (pipeline.waited_s - waited_s) / num_steps
    for _ in range(2):
        pipeline.progress(iterator)
    assert pipeline.shutdown()
    return {"step_s": step_s, "exposed_s": exposed_s, "loss": float(loss)}


def main() -> None:
    """Every case, its two ways by turns; as JSON."""
    rank, world_size, store, num_steps, repeats = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        *sys.argv[3:4],
        *map(int, sys.argv[4:]),
    )
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    shaped, plain = GlooTransport(timeout_s=120, link=LINK), GlooTransport(timeout_s=120)
    cases: dict[str, tuple[GlooTransport, float, int]] = {
        "0": (shaped, 0.0, DEPTH),
        "10": (shaped, 0.1, DEPTH),
        "50": (shaped, 0.5, DEPTH),
        "100": (shaped, 1.0, DEPTH),
        "unshaped": (plain, 0.1, 0),
    }
    out: dict[str, Any] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, (transport, collisions, depth) in cases.items():
            data = batches(rank, num_steps + SETTLED + 2, collisions)
            pair = {way: run(data, transport, overlap=way == "ours", depth=depth) for way in ("sync", "ours")}
            assert pair["sync"]["loss"] == pair["ours"]["loss"], "the two ways train the same"
            out[name].append(pair)
    sys.stdout.write(json.dumps(out) + "\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
