"""How long it takes to find the rows that two batches share."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.result import put
from lightning_intune.overlap import SGD, Table
from lightning_intune.overlap.shard import Shard
from lightning_intune.overlap.stack import Stack
from lightning_intune.overlap.turn import Turn, collide

NUM_IDS, NUM_EMBEDDINGS = 100_000, 5_000_000


def planning(runs: int) -> dict[str, Any]:
    """`plan_ms`: CPU milliseconds of one thread, for two batches of 100,000 deduplicated ids each, on an owner."""
    table = Table(name="t", num_embeddings=NUM_EMBEDDINGS, embedding_dim=1, feature_names=("a",))
    shard = Shard(Stack([table], 1), SGD(lr=0.1), 0, torch.float32)
    rng = torch.Generator().manual_seed(0)
    times_ms: list[float] = []
    before = _turn(0, rng)
    shard.last_reader[before.asked[0]] = before.number
    for number in range(1, runs + 2):
        turn = _turn(number, rng)
        begun_s = time.thread_time()
        late, urgent = collide(before, turn, [shard])
        times_ms.append(1e3 * (time.thread_time() - begun_s))
        shared = torch.isin(turn.asked[0], before.asked[0], assume_unique=True)
        assert torch.equal(late[0], shared)
        assert int(urgent[0].sum()) == int(shared.sum())
        before = turn
    figures: dict[str, Any] = {"plan_ids": NUM_IDS}
    put(figures, "plan_ms", times_ms[1:])
    return figures


def _turn(number: int, rng: torch.Generator) -> Turn:
    """Half of the ids are hot, so that about half collide."""
    hot = torch.arange(NUM_IDS // 2)
    cold = (torch.randperm(NUM_EMBEDDINGS - len(hot), generator=rng)[: NUM_IDS - len(hot)] + len(hot)).sort().values
    return Turn(number=number, requests=[], asked=[torch.cat([hot, cold])], asked_counts=[[NUM_IDS]])
