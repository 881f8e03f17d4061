"""One collection's jobs for the thread that exchanges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lightning_intune.overlap.bags import Features
from lightning_intune.overlap.collection import OverlappedCollection
from lightning_intune.overlap.exchange import Exchange, Status
from lightning_intune.overlap.lookup import Lookup
from lightning_intune.overlap.transport import Transport
from lightning_intune.overlap.turn import Turn


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """A batch's lookup, and its turn at the owners."""

    lookup: Lookup
    turn: Turn


Answer = Future["Asked | None"]
"""None where no rank has a batch."""


@final
@dataclass(frozen=True, kw_only=True)
class Update:
    """A step's gradients, by stack, and what the optimizer has to know. None: the step computed none."""

    grads: Sequence[Tensor] | None
    lr: float
    step: int


@final
class Lane:
    """Every method is a job: called in the same order on all ranks, by one thread."""

    def __init__(self, collection: OverlappedCollection, transport: Transport, *, waits: bool) -> None:
        self.collection = collection
        self._exchange = Exchange(collection.shards, transport, waits=waits)

    def ask(self, features: Callable[[], Features] | None, status: Status, before: Answer | None) -> Asked | None:
        """Ask for a batch's rows, and get those that the step `before`, under way, does not update.

        `status` says why there are no `features`.
        """
        lookup = None
        if features is not None:
            try:
                lookup = self.collection.tables.lookup(features())
            except Exception as error:
                self._tell_failure(error)
                raise
        turn = self._exchange.ask([] if lookup is None else lookup.requests, status)
        if turn is None or lookup is None:
            return None
        previous = None if before is None else before.result()
        self._exchange.mark(None if previous is None else previous.turn, turn)
        self._exchange.fetch_early(turn)
        return Asked(lookup=lookup, turn=turn)

    def finish(self, asked: Answer, update: Update, behind: Answer) -> Asked | None:
        """Make those updates that the step behind waits for, and get its rows that waited."""
        done, following = asked.result(), behind.result()
        assert done is not None, "it was trained on"
        if update.grads is not None:
            self._exchange.give_urgent(done.turn, update.grads, lr=update.lr, step=update.step)
        if following is not None:
            self._exchange.fetch_late(following.turn)
        return following

    def give_rest(self, asked: Answer, update: Update) -> None:
        """Make the other updates."""
        done = asked.result()
        assert done is not None, "it was trained on"
        if update.grads is not None:
            self._exchange.give_rest(done.turn, update.grads, lr=update.lr, step=update.step)

    def fetch_aside(self, features: Features) -> tuple[Lookup, list[Tensor]]:
        """All rows, as they are now, for a batch that is not trained on."""
        lookup = self.collection.tables.lookup(features)
        turn = self._exchange.ask(lookup.requests)
        assert turn is not None, "this rank has a batch"
        self._exchange.fetch_early(turn)
        return lookup, turn.rows

    def _tell_failure(self, error: Exception) -> None:
        """The others are told, and this rank's own error is raised here."""
        try:
            self._exchange.ask([], Status.FAILED)
        except RuntimeError as told:
            error.add_note(f"The other ranks were told: {told}")
