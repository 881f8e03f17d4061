"""Calls of a stage's function: in the worker's own thread or in its lane, and again where a failure allows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

from lightning_intune.flow.crew import Work
from lightning_intune.flow.gate import Gate
from lightning_intune.flow.lanes.lane import Failed, LaneDiedError, LaneDiedIdleError, LanePool
from lightning_intune.flow.lanes.tries import Tries
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.stage_meter import StageMeter
from lightning_intune.flow.triage import Triage
from lightning_intune.flow.worker import BUSY, Worker


@final
class Calls:
    """Turns the items in a worker's hands into outcomes, outside the gate's lock. Any worker's thread."""

    def __init__(self, plan: Plan, triage: Triage, gate: Gate, meter: StageMeter) -> None:
        self._plan, self._triage, self._gate, self._meter = plan, triage, gate, meter

    def in_thread(self, worker: Worker, work: Work) -> list[Any]:
        """The outcome of the one item in `work`, as a list of one: a result, a `Skipped` or a `Failed`."""
        number, item = work[0]
        worker.number = number
        fn = self._plan.fn
        outcome = item if fn is None else call(fn, item)
        if type(outcome) is Failed and self._triage.is_active:
            outcome = self._treat(worker, number, item, outcome, None)
        try:
            return [outcome]
        finally:
            del outcome  # it may hold an error, which leads to this frame (see `run`)

    def in_lane(self, worker: Worker, work: Work, lanes: LanePool) -> list[Any]:
        """The outcomes of `work`, or of its first items only, if they were not as quick as was thought."""
        worker.number, gate = work[0][0], self._gate
        outcomes = call_in_lane(
            worker, lanes, [item for _, item in work], lambda: gate.is_closing, within_s=self._plan.within_s
        )
        if self._triage.is_active:
            outcomes = [
                self._treat(worker, number, item, outcome, lanes) if type(outcome) is Failed else outcome
                for (number, item), outcome in zip(work, outcomes, strict=False)
            ]
        try:
            return outcomes
        finally:
            del outcomes  # as above

    def _treat(self, worker: Worker, number: int, item: Any, outcome: Failed, lanes: LanePool | None) -> Any:
        """What the stage's `on_error` makes of a failure."""
        try:
            return self._triage.treat(
                number,
                item,
                outcome,
                again=lambda: self._try_again(worker, number, item, lanes),
                wait=lambda seconds: self._gate.doze(worker.bell, seconds),
            )
        finally:
            del outcome  # as above

    def _try_again(self, worker: Worker, number: int, item: Any, lanes: LanePool | None) -> Any:
        fn, gate = self._plan.fn, self._gate
        assert fn is not None
        with gate.lock:
            self._meter.num_retried += 1
            worker.number = number
            self._meter.settle(worker, BUSY, self._plan.clock())  # a timeout is one try's
        if lanes is None:
            return call(fn, item)
        return call_in_lane(worker, lanes, [item], lambda: gate.is_closing)[0]


def call(fn: Callable[[Any], Any], item: Any) -> Any:
    """`fn(item)`, or a `Failed` with whatever it raised: a worker never dies of a user's error."""
    try:
        return fn(item)
    except BaseException as error:  # noqa: BLE001 - kept whole and raised in the consumer
        return Failed(error)


def call_in_lane(
    worker: Worker,
    pool: LanePool,
    items: list[Any],
    is_closing: Callable[[], bool],
    *,
    within_s: float = math.inf,
) -> list[Any]:
    """Outcomes of `items` in the worker's lane, of the first ones only when they take longer than `within_s`.

    A dead lane is replaced and its items tried again.

    After a death at work the items go one by one, so that the one which kills lanes is found and named and
    the others come through. An item that is not to be tried again (`Tries`) is a `Failed` with LaneDiedError, one whose
    lane was killed because it hung (`Worker.overdue`) with TimeoutError, and so is every item while the run is closing:
    then it is we who kill.
    """
    tries = Tries()
    while True:
        try:
            return worker.open_lane(pool).run(items, within_s=within_s)
        except LaneDiedError as died:
            worker.drop_lane()
            overdue, worker.overdue = worker.overdue, None
            if overdue is not None and overdue[0] == worker.number:
                return [Failed(overdue[1])]
            if is_closing():
                return [Failed(died) for _ in items]
            if len(items) > 1 and not isinstance(died, LaneDiedIdleError):
                break
            if not tries.may_go_on(died):
                return [Failed(died) for _ in items]
    return [call_in_lane(worker, pool, [item], is_closing)[0] for item in items]
