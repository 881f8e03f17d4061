"""Delivered is not trained: where a loader stood before each batch that the trainer has and has not yet trained on."""

from __future__ import annotations

from collections import deque
from typing import Protocol, final

from lightning_intune.flow.node import State


class Progress(Protocol):
    """How far the training has come, in batches of the present epoch."""

    def num_fetched(self) -> int:
        """Batches taken from the loaders so far; trainers and pipelines take some ahead."""
        ...

    def num_trained(self) -> int:
        """Batches whose training step has ended."""
        ...

    def next_epoch(self) -> int | None:
        """Once the epoch's last batch is trained: the epoch that comes next. None before."""
        ...


@final
class Trail:
    """The states before the batches that are ahead of training: as many as the trainer takes ahead, and one.

    The consumer's thread only.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ahead: deque[tuple[int, State]] = deque()  # (number in the epoch, state before it), ascending

    def note(self, before: State, *, num_fetched: int | None = None) -> None:
        """A batch is about to be delivered; `before` is the state in front of it."""
        trained = self._progress.num_trained()
        # A resumed Lightning counts what it fetches from 0 until its first step, and what is trained rightly.
        number = max(self._progress.num_fetched() if num_fetched is None else num_fetched, trained)
        while self._ahead and self._ahead[-1][0] >= number:  # of another epoch
            self._ahead.pop()
        while self._ahead and self._ahead[0][0] < trained:
            self._ahead.popleft()
        self._ahead.append((number, before))

    def next_epoch(self) -> int | None:
        """The epoch to begin with when the present one is trained to its end, else None."""
        return self._progress.next_epoch()

    def first_untrained(self) -> State | None:
        """The state before the first batch not trained on; None when every delivered one was."""
        trained = self._progress.num_trained()
        return next((state for number, state in self._ahead if number >= trained), None)
