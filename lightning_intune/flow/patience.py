"""How a consumer waits for its item, and what it does about workers that keep it waiting for too long."""

from __future__ import annotations

from collections import deque
from typing import Any, final

from lightning_intune.errors import stage_error
from lightning_intune.flow.buffers import NOTHING, Buffer
from lightning_intune.flow.crew import Crew
from lightning_intune.flow.gate import Gate, ring
from lightning_intune.flow.hoard import Hoard
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.triage import Triage
from lightning_intune.flow.worker import BUSY


@final
class Patience:
    """Of the consumers of one run. Called under the gate's lock, which is let go while they wait."""

    def __init__(self, plan: Plan, gate: Gate, crew: Crew, triage: Triage, hoard: Hoard | None) -> None:
        self._plan, self._gate, self._crew, self._triage, self._hoard = plan, gate, crew, triage, hoard

    def wait(self, buffer: Buffer, inbox: deque[tuple[int, Any]]) -> None:
        """Until something happened that may have brought the item; StageError where a function exceeds `timeout_s`."""
        if self._hoard is not None:
            self._wait_and_watch(self._hoard, inbox)
            return
        limit_s = self._plan.timeout_s
        self._gate.has_item.wait(limit_s)
        # Not only when the wait has run out: whoever resizes often wakes the consumer before that.
        if limit_s is not None and buffer.peek() is NOTHING:
            self._check_timeout(limit_s)

    def _wait_and_watch(self, hoard: Hoard, inbox: deque[tuple[int, Any]]) -> None:
        woken = self._gate.has_item.wait(hoard.patience_s())
        if not woken and hoard.is_stuck() and inbox:
            if self._gate.can_claim:
                ring(self._gate.can_claim)
            else:
                self._crew.grow(len(self._crew.counted) + 1)  # one more, until the claimer is back

    def _check_timeout(self, limit_s: float) -> None:
        now_s = self._plan.clock()
        for worker in self._crew.counted:
            if worker.phase is BUSY and now_s - worker.since_s >= limit_s:
                cause = TimeoutError(f"the function has worked for {now_s - worker.since_s:.1f} s")
                if worker.lane is not None and worker.overdue is None and self._triage.is_for(cause):
                    worker.overdue = (worker.number, cause)
                    worker.lane.kill()
                    continue
                if worker.overdue is not None and now_s - worker.since_s < 2 * limit_s:
                    continue  # killed; a lane that cannot be is raised
                hint = f"Raise timeout_s={limit_s:g} if that is normal for this stage."
                raise stage_error(self._plan.name, worker.number, cause, hint)
