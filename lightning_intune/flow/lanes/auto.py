"""Lanes that can be moved while they run: in the worker's own thread, or in a process of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes.lane import Failed, Lane, LanePool


@final
class AutoLanePool(LanePool):
    """Starts in threads; `move("process")` gives every worker a process from its next item on, and back.

    The engine sees lanes either way, so order, exactly-once delivery and resume do not notice a move. Whether
    the function can cross to a process shows only when it is asked to: ConfigError from `move`, which then
    changes nothing.
    """

    kind: str = "thread"

    def __init__(
        self, fn: Callable[[Any], Any], *, name: str, context: str | None = None, is_bounded: bool = False
    ) -> None:
        self._fn, self._name, self._context, self._is_bounded = fn, name, context, is_bounded
        self._processes: LanePool | None = None
        self._moving = renewed_lock(self, "_moving", threading.Lock)

    def move(self, where: str) -> None:
        """From any thread; returns at once, except that the first move to processes pickles the function."""
        if where not in ("thread", "process"):
            raise ConfigError(f"stage '{self._name}': there are no {where!r} lanes to move to. 'thread' or 'process'.")
        with self._moving:
            if where == "process" and self._processes is None:
                from lightning_intune.flow.lanes import open_pool

                self._processes = open_pool(
                    "process", self._fn, name=self._name, context=self._context, is_bounded=self._is_bounded
                )
            self.kind = where

    @property
    def processes(self) -> LanePool | None:
        """Where workers get their processes; None while they work in their threads."""
        return self._processes if self.kind == "process" else None

    def open(self) -> Lane:
        return AutoLane(self, self._fn)

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()

    def __reduce__(self) -> Any:
        # A stage travels (ddp_spawn); its processes stay.
        return _remake, (self._fn, self._name, self._context, self._is_bounded)


def _remake(fn: Callable[[Any], Any], name: str, context: str | None, is_bounded: bool) -> AutoLanePool:
    return AutoLanePool(fn, name=name, context=context, is_bounded=is_bounded)


@final
class AutoLane(Lane):
    """One worker's: calls the function itself, or has it called in the process it owns while the pool says so."""

    def __init__(self, pool: AutoLanePool, fn: Callable[[Any], Any]) -> None:
        self._pool, self._fn = pool, fn
        self._process: Lane | None = None
        self._earlier_cpu_s, self._fn_s = 0.0, 0.0
        self._earlier_fn_s, self._earlier_delay_s = 0.0, 0.0

    def run(self, items: Sequence[Any], *, within_s: float = math.inf) -> list[Any]:
        processes = self._pool.processes
        if processes is None:
            self._leave_process()
            return self._run_here(items, within_s)
        if self._process is None:
            self._process = processes.open()
        return self._process.run(items, within_s=within_s)

    def _run_here(self, items: Sequence[Any], within_s: float) -> list[Any]:
        outcomes: list[Any] = []
        began_s = now_s = time.perf_counter()
        for item in items:
            try:
                outcomes.append(self._fn(item))
            except BaseException as error:  # noqa: BLE001 - kept whole and raised in the consumer
                outcomes.append(Failed(error))
            now_s = time.perf_counter()
            if now_s - began_s > within_s:
                break
        self._fn_s += now_s - began_s
        try:
            return outcomes
        finally:
            del outcomes  # an error among them leads to this frame

    def _leave_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._earlier_cpu_s += process.cpu_s
            self._earlier_fn_s += process.fn_s
            self._earlier_delay_s += process.run_delay_s
            process.close()

    @property
    def cpu_s(self) -> float:
        process = self._process  # what ran here is in the thread's own count
        return self._earlier_cpu_s + (process.cpu_s if process is not None else 0.0)

    @property
    def run_delay_s(self) -> float:
        process = self._process  # a thread's own delay is in its own count too
        return self._earlier_delay_s + (process.run_delay_s if process is not None else 0.0)

    @property
    def fn_s(self) -> float:
        process = self._process
        return self._fn_s + self._earlier_fn_s + (process.fn_s if process is not None else 0.0)

    def close(self) -> None:
        self._leave_process()

    def kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
