"""The pulling engine: one pass of a stage over its source, by workers that come and go.

A worker *claims* (takes the next item from upstream, one claimer at a time), works outside every
lock, and puts the result into a small buffer from which the consumer takes it. There is no reader
thread, no sorter thread and no polling; whoever waits is woken by the event it waits for.

An error leads, by its traceback, to every frame it was raised under. Those that an error may pass under on its way
into the buffer let go of the run (`del self`), and of what leads to that buffer, as they end: a run that refers to
itself would keep its source, and the source's workers, until a garbage collection.
"""

from __future__ import annotations

import time
from typing import Any, final

from lightning_intune.errors import stage_error
from lightning_intune.flow.allocator import keep_freed_memory
from lightning_intune.flow.buffers import NOTHING, AnyOrder, Buffer, InOrder
from lightning_intune.flow.calls import Calls
from lightning_intune.flow.claims import Claims
from lightning_intune.flow.crew import WAIT, Crew, Step, Work
from lightning_intune.flow.delivery import Delivery
from lightning_intune.flow.forks import renew_after_fork
from lightning_intune.flow.gate import Gate, ring, ring_all
from lightning_intune.flow.intake import Intake
from lightning_intune.flow.lanes.lane import Failed
from lightning_intune.flow.node import BaseNode, State, StoppedError
from lightning_intune.flow.patience import Patience
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.puller import Puller
from lightning_intune.flow.sizes import item_nbytes
from lightning_intune.flow.stage_meter import StageMeter
from lightning_intune.flow.triage import Skipped, Triage
from lightning_intune.flow.worker import BLOCKED, BUSY, IDLE, STARVED, Worker

_REVIEW = 31  # the bound is reviewed, and an item measured, whenever `num_items & _REVIEW` is 0


@final
class Run:
    """One pass over a source. `take` is the consumer's; `resize` and `read` are anyone's; a `Job` to its workers.

    Under the gate's lock are the buffer, the claims, the meter, the crew and every flag. Outside it are the calls
    to the source (one claimer at a time) and to the function.
    """

    def __init__(self, plan: Plan, source: BaseNode[Any], state: State | None, meter: StageMeter) -> None:
        self._plan, self._meter = plan, meter
        intake = Intake(source, state, every=plan.snapshot_every, prebatch=plan.prebatch, clock=plan.clock)
        # What was delivered out of order is told by numbers, which mean nothing if the source may number anew.
        in_order = plan.in_order or not intake.has_fixed_order
        self._buffer: Buffer = (InOrder if in_order else AnyOrder)(intake.low, intake.beyond)
        self._claims = claims = Claims(plan, intake, self._buffer, meter)
        self._triage = Triage(plan.on_error, plan.name, state, in_order=in_order, low=intake.low)
        self.gate = Gate()
        self._calls = Calls(plan, self._triage, self.gate, meter)
        self._lock = self.gate.lock
        self.crew = Crew(self, plan, self.gate)
        self._workers = self.crew.counted
        self._inline = Worker(plan.clock(), is_inline=True)  # the consumer, where it works itself
        self._delivery = Delivery(plan, claims, self._buffer, self._triage, self.gate)
        self._puller = Puller(
            plan, self.gate, self.crew, intake=intake, claims=claims, buffer=self._buffer, delivery=self._delivery,
            triage=self._triage, meter=meter,
        )  # fmt: skip
        self._hoard = self._puller.hoard
        self._patience = Patience(plan, self.gate, self.crew, self._triage, self._hoard)
        self._is_started = False
        self._fault: BaseException | None = None
        self._end_text = "was shut down"
        renew_after_fork(self)
        keep_freed_memory()

    # ---- the consumer ----

    def take(self) -> Any:
        """The next item; StopIteration at the end, StoppedError once the gate is closed, an item's StageError."""
        claims = self._claims
        while True:
            with self._lock:
                if not self._is_started:
                    self._is_started = True
                    self._grow()
                while (item := self._buffer.peek()) is NOTHING:
                    if self._fault is not None:
                        raise stage_error(self._plan.name, self._buffer.low, self._fault, "The stage itself failed.")
                    if self.gate.is_closing:
                        raise StoppedError(f"stage '{self._plan.name}' {self._end_text}. Call reset to start anew.")
                    if claims.has_ended and claims.num_in_flight == 0:
                        raise StopIteration
                    if claims.width == 0 and not (self._workers or claims.has_claimer or claims.is_exhausted):
                        break
                    self._wait_for_item()
                else:
                    if type(item) is Skipped:
                        self._leave_out(item)
                        continue
                    return self._deliver(item)
            self._work_inline()

    def take_burst(self, limit: int) -> list[Any]:
        """Up to `limit` items: waits for the first only."""
        items = [self.take()]
        with self._lock:
            while len(items) < limit:
                item = self._buffer.peek()
                if item is NOTHING or type(item) is Failed or type(item) is Skipped:
                    break
                items.append(self._deliver(item))
        return items

    def state(self) -> State:
        """State after the last item taken."""
        with self._lock:
            return self._claims.state() | self._triage.state()

    def _leave_out(self, skipped: Skipped) -> None:
        self._triage.leave_out(skipped, num_items=self._buffer.low + len(self._buffer.beyond) + 1)
        self._meter.num_skipped += 1
        self._deliver(skipped)

    def _deliver(self, item: Any) -> Any:
        if type(item) is Failed:
            raise item.error
        claims = self._claims
        claims.num_in_flight -= 1
        self._delivery.pop()
        # Tiny items: let half the room open before a worker is woken for it.
        if self.gate.can_claim and (claims.num_in_flight * 2 <= claims.bound or not self._meter.tiny):
            self._call_worker()
        return item

    def _wait_for_item(self) -> None:
        self._delivery.num_waiting += 1
        try:
            self._call_worker()
            self._patience.wait(self._buffer, self._claims.inbox)
        finally:
            self._delivery.num_waiting -= 1

    def _work_inline(self) -> None:
        """Width 0: the consumer is the worker, for one claim, in its own thread."""
        worker, claims, before_s = self._inline, self._claims, time.thread_time()
        with self._lock:
            if self.gate.is_closing or claims.has_claimer or claims.is_exhausted:
                return
            self._meter.settle(worker, STARVED, self._plan.clock())
            claims.has_claimer = not claims.inbox
            work = claims.draw(1) if claims.inbox else None
        if work is None:
            work = self._puller.pull(worker, 1)  # one: it is the head of the line, so no bound can hold it back
        if isinstance(work, list) and work:
            outcomes = self._calls.in_thread(worker, work)
            if type(outcomes[0]) is Failed and not isinstance(outcomes[0].error, Exception):
                raise outcomes[0].error  # Ctrl-C and the like, as in `Puller.pull`
            self._put(worker, work, outcomes)
            del outcomes  # they may hold an error, which leads here
        with self._lock:
            self._meter.settle(worker, IDLE, self._plan.clock())
            self._meter.cpu_s += time.thread_time() - before_s

    # ---- any thread ----

    def resize(self, target: int, bound: int | None) -> None:
        """Ask for `target` workers and at most `bound` items in flight (None: the engine chooses)."""
        with self._lock:
            self._claims.fix(target, bound)
            if self._is_started:
                self._grow()
            ring_all(self.gate.can_claim)  # those beyond the target leave, the others look at the new bound
            self.gate.has_item.notify_all()  # at width 0 the consumer takes over

    def read(self) -> dict[str, Any]:
        """The gauges, and the counters with what is still going on, as fields of `StageStats`."""
        with self._lock:
            now_s, num_ready = self._plan.clock(), len(self._buffer)
            metered = self.crew.metered
            reading = self._meter.read(
                self.crew.seconds(now_s),
                live_workers=self.crew.num_live()
                if self._is_started and not self._claims.has_ended
                else self._claims.width,
                cpu_s=sum(worker.cpu_s() for worker in metered),
                run_delay_s=sum(worker.run_delay_s() for worker in metered),
            )
            delivery = self._delivery
            bytes_ready = delivery.used_bytes if delivery.is_bounded else int(num_ready * self._meter.item_bytes)
            gauges = {"num_in_flight": self._claims.num_in_flight, "max_in_flight": self._claims.bound}
            return reading | gauges | {"num_ready": num_ready, "bytes_ready": bytes_ready}

    @property
    def is_pulling(self) -> bool:
        """Whether somebody is in the source."""
        return self._claims.has_claimer

    def after_fork(self) -> None:
        """In a forked child: the workers are not here, and one of them may have held the lock."""
        self.gate.renew()
        self._lock = self.gate.lock
        if self.crew.orphan():
            self.gate.is_closing = True
            self._claims.has_claimer = False  # who was in the source then is not here either, and will not come back
            self._end_text = "ran in the process that forked this one; threads do not cross a fork"

    # ---- the workers ----

    def begin(self, worker: Worker) -> Step:
        if self._plan.lanes is not None:
            worker.open_lane(self._plan.lanes)  # before any item is claimed: opening may take a while
        with self._lock:
            self._meter.settle(worker, IDLE, self._plan.clock())
            return self._next_step(worker)

    def go_on(self, worker: Worker, work: Work) -> Step:
        step = self._process(worker, work) if work else self._puller.claim(worker)
        del self
        return step

    def look(self, worker: Worker) -> Step:
        self._meter.settle(worker, STARVED, self._plan.clock())
        if self._delivery.num_waiting and len(self._claims.inbox) > 1:
            ring(self.gate.can_claim)  # what was claimed as tiny keeps the consumer waiting: everybody is needed
        return self._hand_in(worker) if self._delivery.holds(worker) else self._next_step(worker)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._fault, self._claims.has_ended = error, True

    def leave(self, worker: Worker) -> None:
        with self._lock:
            self._meter.settle(worker, IDLE, self._plan.clock())
            self._meter.retire(worker)
            self.crew.retire(worker)
            self.gate.has_item.notify_all()

    def _grow(self) -> None:
        if not (self.gate.is_closing or self._claims.is_exhausted):
            self.crew.grow(self._claims.width)

    def _next_step(self, worker: Worker) -> Step:
        """Under the lock: items for this worker; none, if it is now to pull some; or to wait, or to leave."""
        claims = self._claims
        if self.gate.is_closing or claims.is_exhausted:
            self._workers.discard(worker)
            return None
        # One more than asked for looks after the items of a claimer whom the source keeps waiting.
        if len(self._workers) > claims.width and not (self._hoard is not None and self._hoard.is_open and claims.inbox):
            self._workers.discard(worker)
            self._call_worker()  # this one may have been woken for something: hand it on
            return None
        if claims.inbox:
            return claims.draw()
        room = claims.room > 0
        if room and not claims.has_claimer:
            claims.has_claimer = True
            worker.phase = STARVED  # since it put its last item, or woke up
            return []
        self._meter.settle(worker, STARVED if room else BLOCKED, self._plan.clock())
        worker.bench = self.gate.can_claim
        return WAIT

    def _call_worker(self) -> None:
        if self.gate.can_claim and self._claims.wants_worker:
            ring(self.gate.can_claim)

    def _process(self, worker: Worker, work: Work) -> Step:
        lanes, fn_s = self._plan.lanes, None
        if lanes is None:
            outcomes = self._calls.in_thread(worker, work)
        else:
            outcomes = self._calls.in_lane(worker, work, lanes)
            fn_s = worker.fn_s()
            if len(outcomes) < len(work):  # they were not tiny after all: whoever comes first takes the rest
                with self._lock:
                    self._claims.give_back(work[len(outcomes) :])
                    ring(self.gate.can_claim)
                work = work[: len(outcomes)]
        step = self._put(worker, work, outcomes, fn_s=fn_s)
        del self, outcomes
        return step

    def _put(self, worker: Worker, work: Work, outcomes: list[Any], *, fn_s: float | None = None) -> Step:
        """Hand outcomes to the consumer, and find the worker's next step under the same lock."""
        delivery, meter = self._delivery, self._meter
        is_bounded = delivery.is_bounded
        measured = is_bounded or meter.num_items & _REVIEW < len(outcomes)
        sizes = [item_nbytes(outcome) for outcome in outcomes] if measured else []
        input_bytes = item_nbytes(work[0][1]) if measured and fn_s is not None else 0
        with self._lock:
            now_s = self._plan.clock()
            meter.note_items(len(outcomes), now_s - worker.since_s if fn_s is None else fn_s)
            meter.settle(worker, BUSY, now_s)
            if measured:
                meter.input_bytes = input_bytes
                for nbytes in sizes:
                    meter.note_bytes(nbytes)
                self._claims.review_bound()
            if is_bounded:
                delivery.hold(worker, work, outcomes, sizes)
                return self._hand_in(worker)
            for (number, _), outcome in zip(work, outcomes, strict=True):
                delivery.hand_over(number, outcome)
            return None if worker.is_inline else self._next_step(worker)

    def _hand_in(self, worker: Worker) -> Step:
        if not self._delivery.hand_in(worker):
            self._meter.settle(worker, BLOCKED, self._plan.clock())
            worker.bench = self.gate.has_room
            return WAIT
        return None if worker.is_inline else self._next_step(worker)
