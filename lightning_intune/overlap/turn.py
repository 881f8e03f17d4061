"""One batch of all ranks on its way through the exchange: what is asked of whom, and what must wait for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from lightning_intune.overlap.parcels import counts_where
from lightning_intune.overlap.request import Request
from lightning_intune.overlap.shard import Shard


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of the rows of a turn, by stack. Made behind the compute, so that no step waits for its being counted."""

    wanted: list[Tensor] | None
    """[k] int64, which of the rows that this rank asks for, by their number in its request; None: all."""
    wanted_counts: list[list[int]]
    """How many of them each rank owns."""
    asked: list[Tensor]
    """[k] int64, the places of those that others ask this rank for, rank by rank."""
    asked_counts: list[list[int]]
    """How many of them each rank asks for."""


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
    late: Part | None = None
    """Rows that the batch before updates: to be read behind that. None where there is no batch before."""
    early: Part | None = None
    """The others. None where there are none, all being late."""
    urgent: Part | None = None
    """Rows that the batch behind reads: their gradients go first. None where there is no batch behind."""
    rest: Part | None = None
    """The others. None where there are none, all being urgent."""
    rows: list[Tensor] = field(default_factory=list[Tensor])
    """By stack [n, dim], in the request's order."""


def whole(turn: Turn) -> Part:
    """All of its rows."""
    wanted = [made.counts for made in turn.requests]
    return Part(wanted=None, wanted_counts=wanted, asked=turn.asked, asked_counts=turn.asked_counts)


def divided(turn: Turn, wanted: Sequence[Tensor], asked: Sequence[Tensor]) -> tuple[Part, Part]:
    """By stack, masks over the rows this rank asks for and over `turn.asked`: the rows where they are True; the others.

    >>> import torch
    >>> from lightning_intune.overlap.request import Request
    >>> made = Request(places=torch.tensor([4, 5, 4]), counts=[2, 1], inverse=torch.tensor([0]))
    >>> turn = Turn(number=1, requests=[made], asked=[torch.tensor([7, 9])], asked_counts=[[1, 1]])
    >>> some, others = divided(turn, [torch.tensor([True, False, True])], [torch.tensor([False, True])])
    >>> some.wanted, some.wanted_counts, some.asked, some.asked_counts
    ([tensor([0, 2])], [[1, 1]], [tensor([9])], [[0, 1]])
    >>> others.wanted, others.wanted_counts, others.asked, others.asked_counts
    ([tensor([1])], [[1, 0]], [tensor([7])], [[1, 0]])
    """
    some = _part(turn, wanted, asked)
    return some, _part(turn, [~mask for mask in wanted], [~mask for mask in asked])


def _part(turn: Turn, wanted: Sequence[Tensor], asked: Sequence[Tensor]) -> Part:
    return Part(
        wanted=[mask.nonzero().squeeze(1) for mask in wanted],
        wanted_counts=[counts_where(mask, made.counts) for mask, made in zip(wanted, turn.requests, strict=True)],
        asked=[
            places.index_select(0, mask.nonzero().squeeze(1)) for places, mask in zip(turn.asked, asked, strict=True)
        ],
        asked_counts=[counts_where(mask, counts) for mask, counts in zip(asked, turn.asked_counts, strict=True)],
    )


def collide(before: Turn, turn: Turn, shards: Sequence[Shard]) -> tuple[list[Tensor], list[Tensor]]:
    """Which rows both turns ask this rank for, whoever asks: over `turn.asked`, and over `before.asked`.

    Every row carries the number of the last batch that asked for it, so no row is sorted, hashed or searched for:
    each is looked at twice. It takes `turn` as the last. Call it once per turn, in their order.
    """
    are_late: list[Tensor] = []
    are_urgent: list[Tensor] = []
    for shard, asked, asked_before in zip(shards, turn.asked, before.asked, strict=True):
        are_late.append(shard.last_reader.index_select(0, asked) == before.number)
        shard.last_reader.numpy()[asked.numpy()] = turn.number  # in less time than `index_fill_`
        are_urgent.append(shard.last_reader.index_select(0, asked_before) == turn.number)
    return are_late, are_urgent
