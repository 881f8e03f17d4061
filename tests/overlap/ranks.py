"""Ranks as threads, with a transport between them that may hold any message back for a while."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_intune.errors import ConfigError
from tests.flow.ranks import at_once


class Meeting:
    """Where the threads of a job meet."""

    def __init__(self, world_size: int, timeout_s: float = 30) -> None:
        self.barrier = threading.Barrier(world_size, timeout=timeout_s)
        self.table: list[Any] = [None] * world_size

    def swap(self, rank: int, message: Any) -> list[Any]:
        self.table[rank] = message
        self.barrier.wait()
        table = list(self.table)
        self.barrier.wait()
        return table


class Threads:
    """A transport; `lag_s` says, message by message, how long this rank comes late. Its messages are counted."""

    device_types = ("cpu",)

    def __init__(self, meeting: Meeting, rank: int, world_size: int, lag_s: Callable[[], float]) -> None:
        self.meeting, self.rank, self.world_size, self.lag_s = meeting, rank, world_size, lag_s
        self.is_open = False
        self.sent: list[list[int]] = []

    def open(self) -> None:
        self.is_open = True

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        assert self.is_open
        assert sum(sizes_out) == len(sent)
        assert sent.dim() == 1
        self.sent.append(sizes_out)
        time.sleep(self.lag_s())
        parcels = self.meeting.swap(self.rank, [part.clone() for part in sent.split(sizes_out)])
        got = [by_rank[self.rank] for by_rank in parcels]
        assert [len(part) for part in got] == sizes_in
        assert len({part.dtype for part in got}) == 1
        return torch.cat(got)

    def describe(self) -> str:
        return "threads"


class Rank:
    """One rank: a transport for rows, and a mean over ranks for dense gradients."""

    def __init__(self, rank: int, transport: Threads, dense: Meeting) -> None:
        self.rank, self.transport, self._dense = rank, transport, dense

    def mean(self, value: Tensor) -> Tensor:
        return torch.stack(self._dense.swap(self.rank, value.clone())).mean(dim=0)


def on_ranks(world_size: int, work: Callable[[Rank], Any], *, max_lag_s: float = 0.0, seed: int = 0) -> list[Any]:
    """`work` on every rank at once; what it returned or raised, by rank. One that raises breaks the meetings."""
    rows, dense = Meeting(world_size), Meeting(world_size)

    def run(rank: Rank) -> Any:
        try:
            return work(rank)
        except Exception:
            rows.barrier.abort()
            dense.barrier.abort()
            raise

    lags = [random.Random(f"{seed}/{rank}") for rank in range(world_size)]
    ranks = [
        Rank(rank, Threads(rows, rank, world_size, lambda rng=lags[rank]: rng.random() * max_lag_s), dense)
        for rank in range(world_size)
    ]
    return at_once(ranks, run)


def refusal(work: Callable[[], Any]) -> str:
    """What it ends with. Raised out of one rank it would break the others' meetings."""
    with pytest.raises((RuntimeError, ConfigError)) as raised:
        work()
    return str(raised.value)
