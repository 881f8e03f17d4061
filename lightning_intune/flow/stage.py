"""What the elastic stages share: a stage is one pass over its source after another, a width, and its meters."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeVar

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow.forks import renew_after_fork
from lightning_intune.flow.lanes.auto import AutoLanePool
from lightning_intune.flow.node import BaseNode, Node, State, StoppedError, release, shut_down
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.run import Run
from lightning_intune.flow.stage_meter import StageMeter
from lightning_intune.knobs import Bounds, Knob
from lightning_intune.meters import StageStats

T = TypeVar("T")


class ElasticStage(Node[T]):
    """What the elastic stages share: runs that follow one another, one knob, one meter."""

    _has_width = True
    """False: the target is a depth, which is true at once, and not a number of workers."""

    def __init__(self, source: BaseNode[Any], plan: Plan, *, width: int, bounds: Bounds) -> None:
        super().__init__(source)
        if not isinstance(source, BaseNode):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise ConfigError(
                f"stage '{plan.name}': source={type(source).__name__} is not a node. Wrap an iterable in "
                "lightning_intune.flow.IterableSource, or a DataLoader in lightning_intune.elastic."
            )
        if plan.snapshot_every < 0:
            raise ConfigError(
                f"stage '{plan.name}': snapshot_frequency={plan.snapshot_every} is no number of items. Set it to 1 or "
                "more, or to 0 to resume from the beginning and drop what was delivered."
            )
        self._source, self._plan, self.bounds = source, plan, bounds
        self._meter = StageMeter(plan.tiny_s, plan.tiny_bytes)
        self._run: Run | None = None
        self._finalizer: weakref.finalize[..., ElasticStage[T]] | None = None
        self.after_fork()
        renew_after_fork(self)
        self._error: StageError | None = None
        self._target = self._checked(width)

    @property
    def name(self) -> str:
        """The stage's name, as in meters, knobs and errors."""
        return self._plan.name

    @property
    def keeps_order(self) -> bool:
        """Whether items come out in the order they came in."""
        return self._plan.in_order

    def keep_order(self) -> None:
        """Take back `in_order=False`, which a node downstream could not resume behind; from the next pass on."""
        self._plan = replace(self._plan, in_order=True)

    def rename(self, name: str) -> None:
        """Give the stage another name; before its first item only."""
        assert self._run is None, "a running stage keeps its name"
        self._plan = replace(self._plan, name=name)

    @abstractmethod
    def _widths(self) -> tuple[int, int | None]:
        """Workers and the bound on items in flight (None: the engine's choice) at the present target."""

    def reset(self, initial_state: State | None = None) -> None:
        """Begin a pass over the source, from its start or from a state of any widths and lanes.

        Items in work are finished first, and dropped: functions that block are waited for up to 5 s, then left behind
        (a process is killed after 1 s). RuntimeError where it is the source that blocks. Ctrl-C ends the wait.
        """
        self._end_run(must_end=True)
        self._error = None
        run = Run(self._plan, self._source, initial_state, self._meter)
        with self._turning:
            self._run = run
            run.resize(*self._widths())
        super().reset(initial_state)  # last: where the source could not be reset, the next call says why again
        # A node that is dropped takes its workers along: they hold nothing of it while they wait.
        self._finalizer = weakref.finalize(self, run.gate.close)

    def next(self) -> T:
        run = self._live_run()
        try:
            return run.take()
        except BaseException as error:
            self._ended_with(run, error)
            raise

    def next_burst(self, limit: int) -> list[T]:
        """Up to `limit` items, waiting for the first only (see `Bursting`)."""
        run = self._live_run()
        try:
            return run.take_burst(limit)
        except BaseException as error:
            self._ended_with(run, error)
            raise

    def _ended_with(self, run: Run, error: BaseException) -> None:
        """Leave nothing running, whatever ended the pass: exhaustion, a failure, Ctrl-C."""
        if isinstance(error, StopIteration):
            run.crew.join()
            self._close_lanes()
        elif not isinstance(error, StoppedError):  # that one tells of a shutdown under way
            self._error = error if isinstance(error, StageError) else None
            self.shutdown()

    def get_state(self) -> State:
        assert self._run is not None, "torchdata calls reset before get_state"
        return self._run.state()

    def shutdown(self) -> None:
        """End the workers here and upstream. The state stays readable; `reset` starts anew."""
        run, has_claimer = self._run, False
        if run is not None:
            run.gate.close()
            has_claimer = run.is_pulling  # nobody else goes there any more
            run.crew.interrupt()
        shut_down(self._source)  # releases a worker of ours that waits for it
        self._end_run()
        if has_claimer:
            shut_down(self._source)  # that worker may have been about to begin another pass there (`Repeat`)
        self._close_lanes()

    def resize(self, target: int) -> None:
        """Ask for another width, from any thread; returns at once. ConfigError outside `bounds`."""
        checked = self._checked(target)
        with self._turning:  # a knob turned while a pass begins must not be forgotten
            self._target = checked
            if self._run is not None:
                self._run.resize(*self._widths())

    @property
    def knob(self) -> Knob:
        """The handle by which a tuner turns this stage."""
        lanes = self._plan.lanes
        return Knob(
            stage=self.name,
            bounds=self.bounds,
            target=lambda: self._target,
            live=lambda: self.stats().live_workers,
            turn=self.resize,
            move=lanes.move if isinstance(lanes, AutoLanePool) else None,
        )

    def stats(self) -> StageStats:
        """The stage's meters now, counted over all its passes; from any thread."""
        lanes = self._plan.lanes
        run = self._run
        read = run.read() if run is not None else self._meter.read({}, live_workers=self._target)
        if not self._has_width:
            read["live_workers"] = self._target
        return StageStats(
            name=self.name,
            lane=lanes.kind if lanes is not None else "thread",
            target_workers=self._target,
            min_workers=self.bounds.low,
            max_workers=self.bounds.high,
            **read,
        )

    def __getstate__(self) -> dict[str, Any]:
        # What runs cannot be pickled and is not part of what the stage is (ddp_spawn, notebooks).
        running = {"_run": None, "_finalizer": None, "_error": None, "_meter": None, "_turning": None}
        return {**self.__dict__, **running, "_BaseNode__initialized": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._meter = StageMeter(self._plan.tiny_s, self._plan.tiny_bytes)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked child: somebody may have been turning the knob."""
        self._turning = threading.Lock()

    def release(self) -> None:
        if self._run is not None:
            self._run.gate.close()

    def _live_run(self) -> Run:
        if self._error is not None:
            raise self._error
        assert self._run is not None, "torchdata calls reset before next"
        return self._run

    def _checked(self, width: int) -> int:
        if not self.bounds.low <= whole(width, self.name) <= self.bounds.high:
            raise ConfigError(
                f"stage '{self.name}': a width of {width} is outside its bounds "
                f"[{self.bounds.low}, {self.bounds.high}]. Ask for a width within them, or set other bounds."
            )
        return width

    def _end_run(self, *, must_end: bool = False) -> None:
        """Tell the workers of the pass to leave and wait for them (see `Crew.join`).

        With `must_end` RuntimeError where one is still in the source then: two threads may not pull from it.
        """
        run = self._run
        if run is not None:
            run.gate.close()
            if run.is_pulling:
                release(self._source)  # a worker of ours that waits for a stage upstream
            run.crew.join()
            if must_end and run.is_pulling:
                raise RuntimeError(
                    f"stage '{self.name}': its source has not come back from `next` for {self._plan.join_s:g} s, and "
                    "a new pass may not begin meanwhile: two threads would pull from one source. Reset again once "
                    "it has come back, or build another graph."
                )
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()

    def _close_lanes(self) -> None:
        if self._plan.lanes is not None:
            self._plan.lanes.close()


def whole(width: int, name: str) -> int:
    """`width`, or a ConfigError in the name of the stage `name` for what is no whole number."""
    if not isinstance(width, Integral):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
        raise ConfigError(f"stage '{name}': a width of {width!r} is no whole number. Ask for an int.")
    return width
