"""One batch of all ranks on its way through the exchange: what is asked of whom, and what must wait for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from lightning_intune.overlap.request import Request
from lightning_intune.overlap.shard import Shard


@final
@dataclass(frozen=True, kw_only=True)
class Marks:
    """Some of the rows of a turn, by stack: True where a row belongs to them."""

    wanted: list[Tensor]
    """Over the rows this rank asks for, in the order of its request."""
    asked: list[Tensor]
    """Over the rows others ask this rank for, in the order of `Turn.asked`."""


@final
@dataclass(kw_only=True)
class Turn:
    """Touched by the thread that exchanges only; `rows` is read by the trainer once they are complete."""

    number: int
    requests: list[Request]
    """By stack, what this rank's batch asks for."""
    asked: list[Tensor]
    """By stack, the places [m] int64 of this rank's rows that are asked for, rank by rank; a row may repeat."""
    asked_counts: list[list[int]]
    """By stack, how many of them each rank asks for."""
    late: Marks | None = None
    """Rows that the batch before updates: to be read behind that. None where there is no batch before."""
    urgent: Marks | None = None
    """Rows that the batch behind reads: their gradients go first. None where there is no batch behind."""
    rows: list[Tensor] = field(default_factory=list[Tensor])
    """By stack [n, dim], in the request's order."""


def collide(before: Turn, turn: Turn, shards: Sequence[Shard]) -> tuple[list[Tensor], list[Tensor]]:
    """Which rows both turns ask this rank for, whoever asks: over `turn.asked`, and over `before.asked`.

    Every row carries the number of the last batch that asked for it, so no row is sorted, hashed or searched for:
    each is looked at twice. It takes `turn` as the last. Call it once per turn, in their order.
    """
    are_late: list[Tensor] = []
    are_urgent: list[Tensor] = []
    for shard, asked, asked_before in zip(shards, turn.asked, before.asked, strict=True):
        are_late.append(shard.last_reader.index_select(0, asked) == before.number)
        shard.last_reader.index_fill_(0, asked, turn.number)  # a third of the time of `[asked] =`
        are_urgent.append(shard.last_reader.index_select(0, asked_before) == turn.number)
    return are_late, are_urgent
