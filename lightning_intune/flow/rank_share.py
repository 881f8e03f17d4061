"""One rank's part in agreeing on steps: its windows of items, and where to resume them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, final

from lightning_intune.flow.node import BaseNode, State, StoppedError

T = TypeVar("T")


NOTHING_TO_COPY = (
    "EqualSteps: rank {rank} has no item at all this epoch, so there is nothing to make copies of. Give every rank "
    "some data, use fewer ranks, or mode='drop'."
)


@final
@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank tells the others about its next window."""

    num_items: int
    can_pad: bool
    """Whether it ever had an item to make copies of."""
    error: str | None
    """Why it pulled no more, if that was an error."""
    restart: State
    """The state of its source before the window, and how many items behind it were delivered in earlier ones."""


@final
class RankShare(Generic[T]):
    """One rank's side: pulls windows, and knows where to resume. One thread at a time, but for `padding`."""

    def __init__(self, source: BaseNode[T], restart: State | None, pad: Callable[[T], T] | None) -> None:
        self._source, self._pad = source, pad
        source.reset(None if restart is None else restart["source"])
        self._start = restart["source"] if restart is not None else source.state_dict()
        self._num_dropped = 0 if restart is None else int(restart["drop"])  # items behind `_start` of earlier windows
        self._to_drop = self._num_dropped
        self._last: list[T] = []  # the last item, if there was one, where it is needed
        self._ended = False

    def read(self, size: int, stopped: threading.Event) -> tuple[list[T], Exception | None, Report]:
        """Up to `size` items, the error that came in the next one's place, and the report on both."""
        items: list[T] = []
        error: Exception | None = None
        before = self._start
        try:
            self._drop()
            if not self._ended:
                before = self._source.state_dict()
            while len(items) < size and not self._ended and not stopped.is_set():
                items.append(self._take())
        except StopIteration:
            self._ended = True
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error = raised
        if stopped.is_set() and error is None:
            error = StoppedError("the rank was stopped")
        if items:
            self._start, self._num_dropped = before, 0
        report = Report(
            num_items=len(items),
            can_pad=bool(self._last),
            error=None if error is None else f"{type(error).__name__}: {error}",
            restart=self.restart_of_window(),
        )
        if items:
            self._num_dropped = len(items)
        return items, error, report

    def restart_of_window(self) -> State:
        """Where to resume the window just read."""
        return {"source": self._start, "drop": self._num_dropped}

    def restart(self) -> State:
        """Where to resume behind the last item pulled; one that may need copies pulls that item again."""
        is_behind = self._to_drop == 0 and self._pad is None
        return {"source": self._source.state_dict(), "drop": 0} if is_behind else self.restart_of_window()

    def pull(self) -> T:
        """The next item, for a rank that is alone."""
        self._drop()
        if self._pad is None:
            return next(self._source)
        before = self._source.state_dict()
        item = self._take()
        self._start, self._num_dropped = before, 1
        return item

    def padding(self) -> T:
        """Another copy that weighs nothing."""
        assert self._pad is not None, "only mode='pad' has steps without an item"
        if not self._last:
            raise RuntimeError(NOTHING_TO_COPY.format(rank=0))
        return self._pad(self._last[0])

    def _drop(self) -> None:
        while self._to_drop > 0:
            self._take()
            self._to_drop -= 1

    def _take(self) -> T:
        item = next(self._source)
        if self._pad is not None:
            if not self._last:
                self._pad(item)  # one that fails is to fail now, on all ranks, and not at the epoch's end on some
            self._last = [item]
        return item
