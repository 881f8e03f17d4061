"""Outcomes on their way from the workers to the consumer."""

from __future__ import annotations

from typing import Any, final

from lightning_intune.flow.buffers import Buffer
from lightning_intune.flow.claims import Claims
from lightning_intune.flow.crew import Work
from lightning_intune.flow.gate import Gate, ring_all
from lightning_intune.flow.lanes.lane import Failed
from lightning_intune.flow.outbox import Outbox
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.triage import Triage
from lightning_intune.flow.worker import Worker


@final
class Delivery:
    """How outcomes go into the buffer and out of it, and who is woken for them. Under the gate's lock."""

    def __init__(self, plan: Plan, claims: Claims, buffer: Buffer, triage: Triage, gate: Gate) -> None:
        self._claims, self._buffer, self._triage, self._gate = claims, buffer, triage, gate
        self._outbox = Outbox(buffer, plan.max_bytes, gate)
        self._remembers = triage.remembers
        self.is_bounded = self._outbox.is_bounded
        """Whether outcomes are measured, and wait in their workers' hands for room."""
        self.num_waiting = 0
        """Consumers that wait: one, unless several threads share the stage."""

    @property
    def used_bytes(self) -> int:
        """Of the items that are in, where they are measured."""
        return self._outbox.used_bytes

    def hold(self, worker: Worker, work: Work, outcomes: list[Any], sizes: list[int]) -> None:
        """`worker` has done these, and is to hand them in."""
        self._outbox.hold(worker, work, outcomes, sizes)

    def holds(self, worker: Worker) -> bool:
        """Whether `worker` has outcomes that are not in."""
        return self._outbox.holds(worker)

    def hand_in(self, worker: Worker) -> bool:
        """What the byte bound lets in of what the worker holds; whether that was all.

        What the consumer needs next, or made itself, always goes in.
        """
        for number, outcome in self._outbox.let_in(worker, always=worker.is_inline):
            self.hand_over(number, outcome)
        return not self._outbox.holds(worker)

    def hand_over(self, number: int, outcome: Any) -> None:
        """Into the buffer, in its item's place. After a failure nothing more is claimed."""
        if type(outcome) is Failed:
            outcome = Failed(self._triage.failure(number, outcome.error))
            self._claims.end_before(self._buffer.first_unneeded(number))
            ring_all(self._gate.can_claim)
        if self._buffer.put(number, outcome) and self.num_waiting:
            self._gate.has_item.notify()

    def pop(self) -> None:
        """The item that the buffer shows is out."""
        number = self._buffer.pop()
        if self._remembers:
            self._triage.came_out(self._buffer.low)
        if self.is_bounded:
            self._outbox.release(number)
        if self.num_waiting:
            self._gate.has_item.notify_all()  # another thread waits: the next item, or the end, is its
