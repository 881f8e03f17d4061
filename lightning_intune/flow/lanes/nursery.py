"""Where a pool's process lanes are started, and its warm spare is kept."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import final

from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes import start
from lightning_intune.flow.lanes.arena import Budget
from lightning_intune.flow.lanes.child import Orders
from lightning_intune.flow.lanes.function import PickledFunction
from lightning_intune.flow.lanes.lane import LaneDiedError
from lightning_intune.flow.lanes.process_lane import LostAtStartError, ProcessLane

_NUM_STARTS = 3


@final
class Nursery:
    """Starts lanes and keeps one spare warm. Apart from the pool, so that a dropped pool can end it. Any thread."""

    def __init__(
        self,
        stage: str,
        function: PickledFunction | None,
        starter: start.Starter,
        budget: Budget,
        *,
        keep_spare: bool,
    ) -> None:
        self._stage, self._function, self._starter, self._budget = stage, function, starter, budget
        self._keep_spare = keep_spare
        self._owner_pid = os.getpid()
        self._lock = renewed_lock(self, "_lock", threading.Lock)
        self._is_open = True
        self._spare: ProcessLane | None = None
        self._filler: threading.Thread | None = None
        self._knows_imports = False
        self._cold: ProcessLane | None = None

    def take(self) -> ProcessLane:
        with self._lock:
            spare, self._spare = self._spare, None
            self._is_open = True
        lane = spare if spare is not None and spare.is_alive else None
        if spare is not None and lane is None:
            spare.close()
        lane = lane or self._start_somehow()
        self.refill()
        return lane

    @property
    def is_warm(self) -> bool:
        """Whether a spare waits."""
        with self._lock:
            return self._spare is not None

    def refill(self) -> None:
        """Have a spare started in the background, unless there is one."""
        with self._lock:
            if self._keep_spare and self._is_open and self._spare is None and self._filler is None:
                self._filler = threading.Thread(target=self._fill, name=f"{self._stage}-spare", daemon=True)
                self._filler.start()

    def imported(self, names: list[str]) -> None:
        """The function's first call has imported these: processes started from now on have them, the spare too."""
        function = self._function
        with self._lock:
            if self._knows_imports or function is None:
                return
            self._knows_imports, function.late_modules = True, tuple(names)
            self._cold, self._spare = self._spare, None  # ended by the filler: whoever is here has an item in hand
        self.refill()

    def close(self) -> None:
        """End the spare. `take` opens again."""
        if os.getpid() != self._owner_pid:
            return
        with self._lock:
            self._is_open = False
            filler, idle, self._spare, self._cold = self._filler, (self._spare, self._cold), None, None
        if filler is not None and filler is not threading.current_thread():
            filler.join()
        for lane in idle:
            if lane is not None:
                lane.close()

    def end(self) -> None:
        """For good: the starter too."""
        self.close()
        self._starter.close()

    def _fill(self) -> None:
        lane: ProcessLane | None = None
        while True:
            with self._lock:
                knew, cold, self._cold = self._knows_imports, lane or self._cold, None
            if cold is not None:
                cold.close()
            lane = None
            # An error here is not lost: the next `take` starts a lane itself and meets it again.
            with contextlib.suppress(LaneDiedError, OSError):
                lane = self._start_somehow()
            with self._lock:
                if self._is_open and knew != self._knows_imports:
                    continue  # it came just too early
                self._filler = None
                if self._is_open:
                    self._spare, lane = lane, None
                break
        if lane is not None:
            lane.close()

    def _start_somehow(self) -> ProcessLane:
        for _ in range(_NUM_STARTS - 1):
            with contextlib.suppress(LostAtStartError):  # killed from outside, by the OOM killer say
                return self._start()
        return self._start()

    def _start(self) -> ProcessLane:
        orders = Orders(
            preparation=start.preparation(),
            environ=start.environment(),
            needs_main=self._function is not None and self._function.needs_main,
            by_value=self._function is not None and self._function.by_value,
            num_bytes=self._function.num_bytes if self._function is not None else 0,
            max_shared_bytes=self._budget.max_bytes,
            max_idle_bytes=self._budget.max_idle_bytes,
        )
        ours, theirs = start.socket_pair()
        try:
            process = self._starter.start(theirs, self._function, orders)
        except OSError as error:
            start.close_ours(ours)
            kind = LostAtStartError if isinstance(error, start.StarterLostError) else LaneDiedError
            raise kind(f"stage '{self._stage}': no worker process could be started: {error}") from error
        finally:
            theirs.close()
        lane = ProcessLane(
            process, ours, self._budget, by_value=orders.by_value, stage=self._stage, on_imports=self.imported
        )
        lane.await_ready()
        return lane
