"""Finished items on their way into the buffer, where a byte bound may hold them back in their workers' hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, final

from lightning_intune.flow.buffers import NOTHING, Buffer
from lightning_intune.flow.byte_room import ByteRoom
from lightning_intune.flow.crew import Work
from lightning_intune.flow.gate import Gate, ring_all
from lightning_intune.flow.worker import Worker


@final
class Outbox:
    """Who waits for room with which items. Every call is made under the gate's lock."""

    def __init__(self, buffer: Buffer, max_bytes: int | None, gate: Gate) -> None:
        self._buffer, self._gate, self._room = buffer, gate, ByteRoom(max_bytes)
        self._held: dict[Worker, deque[tuple[int, Any, int]]] = {}  # number, item, bytes
        self.is_bounded = self._room.is_bounded
        """Whether items are measured and kept out at all; where not, nothing passes through here."""

    @property
    def used_bytes(self) -> int:
        """Of the items that are in."""
        return self._room.used

    def hold(self, worker: Worker, work: Work, outcomes: list[Any], sizes: list[int]) -> None:
        """`worker` has done these."""
        numbers = [number for number, _ in work]
        self._held[worker] = deque(zip(numbers, outcomes, sizes, strict=True))

    def holds(self, worker: Worker) -> bool:
        """Whether `worker` has items that are not in."""
        return worker in self._held

    def let_in(self, worker: Worker, *, always: bool) -> Iterator[tuple[int, Any]]:
        """What goes in now of what `worker` holds, each to be put into the buffer before the next is asked for.

        What the consumer needs next always goes in, and everything does with `always` or when the gate is closing.
        """
        held = self._held[worker]
        while held:
            number, outcome, nbytes = held[0]
            goes_in = always or self._gate.is_closing or self._buffer.is_next(number)
            if not (goes_in or self._room.fits(nbytes, head_is_in=self._buffer.peek() is not NOTHING)):
                return
            held.popleft()
            self._room.hold(number, nbytes)
            yield number, outcome
        del self._held[worker]

    def release(self, number: int) -> None:
        """The item is out: there is room, and even an item of no bytes made another one the head of the line."""
        self._room.release(number)
        ring_all(self._gate.has_room)
