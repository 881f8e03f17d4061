"""One worker of a stage: what it is doing now, since when, and what its thread and lane have cost."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import final

from lightning_intune.flow.gate import Bench
from lightning_intune.flow.lanes.lane import Lane, LanePool
from lightning_intune.flow.native_threads import use_one

IDLE, BUSY, STARVED, BLOCKED = "idle", "busy", "starved", "blocked"

_HAS_THREAD_CLOCKS = hasattr(time, "pthread_getcpuclockid")
_NS = 1e-9


@final
class Worker:
    """A worker's meter readings. Written by its own thread or under the run's lock, read under that lock.

    The CPU clock and `schedstat` of the thread are read from outside when somebody asks, so that an
    item pays for two wall-clock readings and nothing else.
    """

    __slots__ = (
        "_account", "_cpu_clock", "_fn_s", "_schedstat", "bell", "bench", "is_inline", "number", "overdue", "phase",
        "since_s",
    )  # fmt: skip

    def __init__(self, now_s: float, *, is_inline: bool = False) -> None:
        self.is_inline = is_inline
        """It is the consumer, in its own thread (width 0)."""
        self.phase = IDLE
        self.since_s = now_s
        self.number = -1
        """Number of the item in work while `phase` is busy."""
        self.overdue: tuple[int, TimeoutError] | None = None
        """The item for which its lane was killed, as it took too long, and what to say of it."""
        self.bell = threading.Lock()
        self.bell.acquire()
        self.bench: Bench = deque()
        """Where it is to wait, when it has to."""
        self._cpu_clock: int | None = None
        self._schedstat: Path | None = None
        # The lane, and CPU and run-delay seconds of earlier ones: one tuple, so that a reader never sees half a change.
        self._account: tuple[Lane | None, float, float] = (None, 0.0, 0.0)
        self._fn_s = 0.0  # of the lane, as last told

    def bind(self) -> None:
        """Called first thing by the worker's own thread: finds its clocks, and keeps native pools to one thread."""
        use_one()
        if _HAS_THREAD_CLOCKS:
            self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._schedstat = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def cpu_s(self) -> float:
        """CPU seconds of the thread and its lanes. Only valid while the thread lives: the run sees to that."""
        thread_s = time.clock_gettime(self._cpu_clock) if self._cpu_clock is not None else 0.0
        lane, earlier_s, _ = self._account
        return thread_s + earlier_s + (lane.cpu_s if lane is not None else 0.0)

    def run_delay_s(self) -> float:
        """Seconds the thread or its lane's process was runnable without a core (DESIGN, section 3).

        0.0 where the kernel does not say.
        """
        lane, _, earlier_s = self._account
        lanes_s = earlier_s + (lane.run_delay_s if lane is not None else 0.0)
        if self._schedstat is None:
            return lanes_s
        try:
            return lanes_s + int(self._schedstat.read_bytes().split()[1]) * _NS
        except (OSError, IndexError, ValueError):
            return lanes_s  # no schedstat here (macOS, some kernels): the meter's documented fallback

    @property
    def lane(self) -> Lane | None:
        """The open lane, if there is one."""
        return self._account[0]

    def open_lane(self, pool: LanePool) -> Lane:
        """The worker's lane, opened on first use."""
        lane, earlier_s, delay_s = self._account
        if lane is None:
            lane = pool.open()
            self._account = (lane, earlier_s, delay_s)
        return lane

    def fn_s(self) -> float:
        """Wall seconds the items took in the open lane since this was last asked, without the way there and back."""
        before_s, self._fn_s = self._fn_s, self.lane.fn_s if self.lane is not None else 0.0
        return self._fn_s - before_s

    def drop_lane(self) -> None:
        """End the lane, if there is one; its CPU seconds stay counted."""
        lane, earlier_s, delay_s = self._account
        if lane is not None:
            self._account, self._fn_s = (None, earlier_s + lane.cpu_s, delay_s + lane.run_delay_s), 0.0
            lane.close()
