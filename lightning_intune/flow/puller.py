"""How a worker takes items from the source, and who is woken for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from lightning_intune.errors import stage_error
from lightning_intune.flow.buffers import Buffer
from lightning_intune.flow.claims import Claims
from lightning_intune.flow.crew import WAIT, Crew, Step
from lightning_intune.flow.delivery import Delivery
from lightning_intune.flow.gate import Gate, ring, ring_all
from lightning_intune.flow.hoard import Hoard
from lightning_intune.flow.intake import Intake
from lightning_intune.flow.lanes.lane import Failed
from lightning_intune.flow.node import StoppedError
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.stage_meter import StageMeter
from lightning_intune.flow.triage import Skipped, Triage
from lightning_intune.flow.worker import BLOCKED, BUSY, STARVED, Worker


@final
class Puller:
    """What the claimer does: the one worker that `claims.has_claimer` speaks of. Takes the gate's lock by itself.

    A claim ends with a share of the items for that worker; with WAIT, if it is to look for others; or with None, at the
    source's end.
    """

    def __init__(
        self,
        plan: Plan,
        gate: Gate,
        crew: Crew,
        *,
        intake: Intake,
        claims: Claims,
        buffer: Buffer,
        delivery: Delivery,
        triage: Triage,
        meter: StageMeter,
    ) -> None:
        self._plan, self._gate, self._crew = plan, gate, crew
        self._intake, self._claims, self._buffer, self._delivery = intake, claims, buffer, delivery
        self._triage, self._meter = triage, meter
        self.hoard = Hoard() if plan.hoards else None
        """Where several items may be claimed from a source that gives one at a time."""

    def claim(self, worker: Worker) -> Step:
        """Pull as many items as are wanted now."""
        hoard = self.hoard
        step = self.pull(worker, self._claims.limit()) if hoard is None else self._collect(worker, hoard)
        del self  # see `run`, here and below
        return step

    def pull(self, worker: Worker, limit: int) -> Step:
        """Pull once, at most `limit` items."""
        try:
            numbers, items, snapshot = self._intake.pull(limit)
        except BaseException as raised:
            if worker.is_inline and not isinstance(raised, Exception):
                with self._gate.lock:
                    self._claims.has_claimer = False
                raise  # Ctrl-C, or what a signal's handler raised, in the user's own thread
            step = self._end(worker, raised)
            del self
            return step
        with self._gate.lock:
            self._claims.has_claimer = False
            self._meter.settle(worker, BUSY, self._plan.clock())
            self._claims.add(numbers, snapshot)
            if len(items) == 1 and not self._triage.known:
                work = [(numbers[0], items[0])]
            else:
                self._take_in(numbers, items)
                work = self._claims.draw()
            if work and self._gate.can_claim:
                self._pass_on()
        del self  # the intake may have met an error behind these items, and keep it for the next pull
        return work or WAIT

    def _collect(self, worker: Worker, hoard: Hoard) -> Step:
        """Pull again and again while the items come at once, into everybody's reach."""
        clock, claims, gate = self._plan.clock, self._claims, self._gate
        limit = claims.limit(hoards=True)
        began_s = now_s = clock()
        while True:
            before_s = now_s
            try:
                numbers, items, snapshot = self._intake.pull(max(1, limit - len(claims.inbox)))
            except BaseException as raised:  # noqa: BLE001 - raised in the consumer
                step = self._end(worker, raised)
                del self, claims
                return step
            now_s = clock()
            with gate.lock:
                claims.add(numbers, snapshot)
                self._take_in(numbers, items)
                is_full = len(claims.inbox) >= limit or claims.room <= 0 or len(self._crew.counted) > claims.width
                if hoard.goes_on(began_s, before_s, now_s) and not (is_full or claims.has_ended or gate.is_closing):
                    if hoard.open() and self._delivery.num_waiting:
                        gate.has_item.notify_all()
                    continue
                hoard.close()
                claims.has_claimer = False
                step = self._share_out(worker)
            del self, claims
            return step

    def _take_in(self, numbers: Sequence[int], items: list[Any]) -> None:
        """Into the inbox; but what a pass before a resume has skipped is left out again, unseen."""
        if self._claims.has_ended:
            return  # an item before these has failed meanwhile
        inbox = self._claims.inbox
        if not self._triage.known:
            inbox.extend(zip(numbers, items, strict=True))
            return
        for number, item in zip(numbers, items, strict=True):
            if number in self._triage.known:
                self._delivery.hand_over(number, Skipped(number, None))
            else:
                inbox.append((number, item))

    def _share_out(self, worker: Worker) -> Step:
        """The end of a claim into the inbox: a share of it, unless others took all."""
        self._meter.settle(worker, BUSY, self._plan.clock())
        work = self._claims.draw()
        if self._gate.can_claim:
            self._pass_on()
        return work or WAIT

    def _pass_on(self) -> None:
        """Wake another worker if there is more to do and it is worth it."""
        if self._claims.inbox or self._claims.room > 0:
            if self._delivery.num_waiting or not self._meter.tiny:
                ring(self._gate.can_claim)
            return
        now_s = self._plan.clock()
        for worker in self._crew.metered:  # the parked ones no longer wait for upstream but for room
            if worker.phase is STARVED:
                self._meter.settle(worker, BLOCKED, now_s)

    def _end(self, worker: Worker, error: BaseException) -> Step:
        """The source is exhausted, or failed: no more claims."""
        with self._gate.lock:
            self._no_more(worker, error)
            if worker.is_inline or not self._claims.inbox:
                return None
            self._crew.counted.add(worker)
            return self._share_out(worker)

    def _no_more(self, worker: Worker, error: BaseException) -> None:
        self._claims.has_ended = True
        self._claims.has_claimer = False
        if self.hoard is not None:
            self.hoard.close()
        self._crew.counted.discard(worker)
        is_shutdown = self._gate.is_closing and isinstance(error, StoppedError)  # upstream's, and no failure
        if not (isinstance(error, StopIteration) or is_shutdown):
            number = self._intake.next_number
            failure = stage_error(self._plan.name, number, error, "The error came from the stage's source.")
            self._claims.num_in_flight += 1  # the failure is delivered as an item is
            self._buffer.put(self._intake.first_missing, Failed(failure))  # what was claimed is worked off first
        ring_all(self._gate.can_claim)
        self._gate.has_item.notify_all()
