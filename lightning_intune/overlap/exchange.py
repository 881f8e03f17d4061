"""Rows fetched from their owners and gradients given to them, those that cannot wait apart from those that can."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import final

import torch
from torch import Tensor

from lightning_intune.overlap.parcels import swap
from lightning_intune.overlap.request import Request
from lightning_intune.overlap.shard import Shard
from lightning_intune.overlap.transport import Transport
from lightning_intune.overlap.turn import Part, Turn, collide, divided, whole


class Status(IntEnum):
    """What a rank says of its next batch."""

    BATCH = 0
    END = 1
    FAILED = 2


@final
class Exchange:
    """The messages of one collection. Every rank makes the same calls in the same order, from one thread at a time.

    With `waits` every row is taken to collide, whether it does or not: rows are then fetched behind all updates, and
    all gradients are sent at once, as a pipeline without look-ahead does.
    """

    def __init__(self, shards: Sequence[Shard], transport: Transport, *, waits: bool = False) -> None:
        self.shards, self.transport, self._waits = list(shards), transport, waits
        self._num_turns = 0

    def ask(self, requests: Sequence[Request], status: Status = Status.BATCH) -> Turn | None:
        """Tell the owners which rows are wanted; None where no rank has a batch.

        RuntimeError on every rank where one has failed, or some have a batch and others have none.
        """
        ranks = range(self.transport.world_size)
        wanted = [made.counts for made in requests] or [[0 for _ in ranks] for _ in self.shards]
        header = torch.tensor([[status, *(counts[rank] for counts in wanted)] for rank in ranks])
        [told] = swap(self.transport, [header], [[1 for _ in ranks]], [[1 for _ in ranks]])
        statuses: list[int] = told[:, 0].tolist()
        _check(statuses)
        if statuses[0] == Status.END:
            return None
        counts: list[list[int]] = told[:, 1:].t().tolist()
        places = swap(self.transport, [made.places for made in requests], wanted, counts)
        self._num_turns += 1
        return Turn(
            number=self._num_turns,
            requests=list(requests),
            asked=[place.long() for place in places],
            asked_counts=counts,
        )

    def mark(self, before: Turn | None, turn: Turn) -> None:
        """Find the rows that `before` updates and `turn` reads, and tell the ranks that ask for them.

        `before` None: nothing is under way, so nothing can collide.
        """
        if before is None:
            for shard, asked in zip(self.shards, turn.asked, strict=True):
                shard.last_reader.index_fill_(0, asked, turn.number)
            return
        if self._waits:
            turn.late, before.urgent = whole(turn), whole(before)
            return
        are_late, are_urgent = collide(before, turn, self.shards)
        own = [[made.counts for made in one.requests] for one in (turn, before)]
        told = swap(
            self.transport,
            [mark.byte() for mark in (*are_late, *are_urgent)],
            [*turn.asked_counts, *before.asked_counts],
            [*own[0], *own[1]],
        )
        wanted = [mark.bool() for mark in told]
        num_stacks = len(self.shards)
        turn.late, turn.early = divided(turn, wanted[:num_stacks], are_late)
        before.urgent, before.rest = divided(before, wanted[num_stacks:], are_urgent)

    def fetch_early(self, turn: Turn) -> None:
        """The rows that no batch under way updates."""
        if turn.late is None:
            turn.rows = self._fetch(whole(turn))
        elif turn.early is not None:
            turn.rows = [
                shard.weights.new_empty(len(made), shard.stack.dim)
                for made, shard in zip(turn.requests, self.shards, strict=True)
            ]
            self._fetch_into(turn, turn.early)

    def fetch_late(self, turn: Turn) -> None:
        """The others, once the updates that they waited for are made."""
        if turn.late is not None:
            self._fetch_into(turn, turn.late)

    def give_urgent(self, turn: Turn, grads: Sequence[Tensor], *, lr: float, step: int) -> None:
        """Update the rows that the batch behind reads."""
        if turn.urgent is not None:
            self._give(turn.urgent, grads, lr=lr, step=step)

    def give_rest(self, turn: Turn, grads: Sequence[Tensor], *, lr: float, step: int) -> None:
        """Update the others."""
        if turn.urgent is None:
            self._give(whole(turn), grads, lr=lr, step=step)
        elif turn.rest is not None:
            self._give(turn.rest, grads, lr=lr, step=step)

    def _fetch(self, part: Part) -> list[Tensor]:
        read = [shard.read(places) for shard, places in zip(self.shards, part.asked, strict=True)]
        return swap(self.transport, read, part.asked_counts, part.wanted_counts)

    def _fetch_into(self, turn: Turn, part: Part) -> None:
        fetched = self._fetch(part)
        if part.wanted is None:
            turn.rows = fetched
            return
        for rows, numbers, some in zip(turn.rows, part.wanted, fetched, strict=True):
            rows.index_copy_(0, numbers, some)

    def _give(self, part: Part, grads: Sequence[Tensor], *, lr: float, step: int) -> None:
        sent = list(grads)
        if part.wanted is not None:
            sent = [grad.index_select(0, numbers) for grad, numbers in zip(grads, part.wanted, strict=True)]
        received = swap(self.transport, sent, part.wanted_counts, part.asked_counts)
        for shard, places, got in zip(self.shards, part.asked, received, strict=True):
            if self.transport.world_size > 1:  # alone it is the trainer's own tensor
                got.div_(self.transport.world_size)  # the mean over ranks, as DDP's and TorchRec's
            shard.update(places, got, lr=lr, step=step)


def _check(statuses: Sequence[int]) -> None:
    failed = [rank for rank, status in enumerate(statuses) if status == Status.FAILED]
    if failed:
        raise RuntimeError(
            f"overlap: rank {failed[0]} failed before its batch could be asked for, and no rank can go on without it. "
            "See that rank's own traceback."
        )
    ended = [rank for rank, status in enumerate(statuses) if status == Status.END]
    if ended and len(ended) < len(statuses):
        raise RuntimeError(
            f"overlap: rank {ended[0]} has no more batches, and others have. Every rank must take equally many steps: "
            "put lightning_intune.flow.EqualSteps behind the source."
        )
