"""Ranks as threads of one process, with a channel between them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

from tests.flow.ranks import at_once


class Ranks:
    """What the ranks of one job have in common."""

    def __init__(self, world_size: int, timeout_s: float = 20) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=timeout_s)
        self.table: list[Any] = [None] * world_size
        self.num_moved_bytes = 0

    def swap(self, rank: int, message: Any) -> list[Any]:
        self.table[rank] = message
        self.barrier.wait()
        table = list(self.table)
        self.barrier.wait()
        return table


class Line:
    """One rank's channel."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.world_size, self.is_open = ranks, rank, ranks.world_size, False

    def open(self) -> None:
        self.is_open = True

    def gather(self, message: Any) -> list[Any]:
        assert self.is_open
        return [pickle.loads(told) for told in self.ranks.swap(self.rank, pickle.dumps(message))]

    def deal(self, parcels: list[bytes]) -> list[bytes]:
        assert parcels[self.rank] == b""  # nothing is sent to oneself
        self.ranks.num_moved_bytes += sum(map(len, parcels))
        return [sent[self.rank] for sent in self.ranks.swap(self.rank, parcels)]


def on_all_ranks(world_size: int, work: Callable[[Line], Any], ranks: Ranks | None = None) -> list[Any]:
    """`work` on every rank at once; what it returned or raised, by rank."""
    shared = ranks or Ranks(world_size)
    return at_once([Line(shared, rank) for rank in range(world_size)], work)
