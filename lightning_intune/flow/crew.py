"""The workers of one run: how they come, what one of them does with its life, and how they go."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol, final

from lightning_intune.flow.gate import Gate
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.worker import BLOCKED, BUSY, IDLE, STARVED, Worker

_LANE_PATIENCE_S = 1.0

Work = list[tuple[int, Any]]


@final
class Wait:
    """A worker has nothing to do, as far as it knows: it is to `look`, and to wait if told this again."""


WAIT: Final = Wait()

Step = Work | Wait | None
"""What a worker does next: these items, or with none of them pull some; wait; leave."""


class Job(Protocol):
    """What a worker works for, as it sees it."""

    def begin(self, worker: Worker) -> Step:
        """Called once, by the worker's own thread, as all of these."""
        ...

    def go_on(self, worker: Worker, work: Work) -> Step:
        """Work it off, outside the lock."""
        ...

    def look(self, worker: Worker) -> Step:
        """Under the gate's lock: what there is to do for a worker that was told to wait, or has waited."""
        ...

    def fail(self, error: BaseException) -> None:
        """The job itself is broken: nobody can go on."""
        ...

    def leave(self, worker: Worker) -> None:
        """The worker does no more."""
        ...


def live(ref: Callable[[], Job | None], gate: Gate, worker: Worker) -> None:
    """A worker's life. While it waits it holds nothing of its job, so that one which is dropped can be collected."""
    worker.bind()
    job = ref()
    try:
        step = None if job is None else job.begin(worker)
        while job is not None and step is not None:
            if not isinstance(step, Wait):
                step = job.go_on(worker, step)
                continue
            with gate.lock:
                step = job.look(worker)  # the lock may have been let go since
                while isinstance(step, Wait):
                    job = None
                    gate.park(worker.bench, worker.bell)
                    job = ref()
                    step = None if job is None else job.look(worker)
    except BaseException as error:  # noqa: BLE001 - ours, not the user's: the consumer must hear of it
        if job is not None:
            job.fail(error)
    finally:
        worker.drop_lane()
        if job is not None:
            job.leave(worker)
        job = None  # an error it keeps may lead here (see `run`)


@final
class Crew:
    """Who works for one run. Called under the gate's lock, but for `join` and `interrupt`."""

    def __init__(self, job: Job, plan: Plan, gate: Gate) -> None:
        self._job, self._plan, self._gate = weakref.ref(job), plan, gate
        self.counted: set[Worker] = set()
        """Those that count towards the width."""
        self.metered: set[Worker] = set()
        """Those whose thread's clocks may be read."""
        self._threads: list[threading.Thread] = []

    def grow(self, target: int) -> None:
        """Let workers join until `target` of them count."""
        while len(self.counted) < target:
            worker = Worker(self._plan.clock())
            name = f"{self._plan.name}-{len(self.metered)}"
            thread = threading.Thread(target=live, args=(self._job, self._gate, worker), name=name, daemon=True)
            thread.start()
            self.counted.add(worker)
            self.metered.add(worker)
            self._threads = [*(old for old in self._threads if old.is_alive()), thread]

    def retire(self, worker: Worker) -> None:
        """Its thread is about to end."""
        self.counted.discard(worker)
        self.metered.discard(worker)

    def num_live(self) -> int:
        """How many work, or could."""
        if self._plan.lanes is None:
            return len(self.counted)
        return sum(worker.lane is not None for worker in self.counted)  # the others' lanes are still opening

    def seconds(self, now_s: float) -> dict[str, float]:
        """By phase, what its workers have spent in the ones they are in."""
        spent_s: dict[str, float] = dict.fromkeys((IDLE, BUSY, STARVED, BLOCKED), 0.0)
        for worker in self.metered:
            spent_s[worker.phase] += now_s - worker.since_s
        return spent_s

    def interrupt(self) -> None:
        """Kill the lanes at work: a stopped run has no use for what they do."""
        with self._gate.lock:
            lanes = [worker.lane for worker in self.metered if worker.lane is not None]
        for lane in lanes:
            lane.kill()

    def join(self) -> None:
        """Wait for every worker, `join_s` in all, less for lanes, which are then killed.

        A thread cannot be, and is warned of.
        """
        patience_s = self._plan.join_s if self._plan.lanes is None else min(self._plan.join_s, _LANE_PATIENCE_S)
        deadline_s = self._plan.clock() + patience_s
        with self._gate.lock:
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in threads:
            thread.join(max(0.0, deadline_s - self._plan.clock()))
        late = [thread for thread in threads if thread.is_alive()]
        if late:
            self.interrupt()
            for thread in late:
                thread.join(_LANE_PATIENCE_S if self._plan.lanes is not None else 0.0)
        if any(thread.is_alive() for thread in late):
            text = (
                f"stage '{self._plan.name}': a worker is still inside its function or its source after "
                f"{patience_s:g} s and is left behind as a daemon thread. Use method='process' "
                "for functions that can block for ever: a process can be ended."
            )
            warnings.warn(text, ResourceWarning, stacklevel=2)

    def orphan(self) -> bool:
        """In a forked child, where the workers are not: forget them. Whether there were any."""
        had_any = bool(self.metered)
        self.counted.clear()
        self.metered.clear()
        self._threads = []
        return had_any
