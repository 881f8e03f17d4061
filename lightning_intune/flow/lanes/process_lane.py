"""One process lane: its conversation with its worker process, and that process's end."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes import start
from lightning_intune.flow.lanes.arena import Budget
from lightning_intune.flow.lanes.lane import Failed, Lane, LaneDiedError, LaneDiedIdleError
from lightning_intune.flow.lanes.wire import (
    AGAIN,
    IMPORTED,
    READY,
    RUN,
    Channel,
    Message,
    PeerGoneError,
    Unloaded,
    UnreadError,
)

_CLOSE_S = 5.0  # for the function in hand to finish, before the process is killed


@final
class LostAtStartError(LaneDiedError):
    """The process was gone before it could say whether it can work; another one may do better."""


@final
class ProcessLane(Lane):
    """One worker process. Made by `ProcessLanePool.open`."""

    def __init__(
        self,
        process: start.Process,
        sock: socket.socket,
        budget: Budget,
        *,
        by_value: bool,
        stage: str,
        on_imports: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        """`on_imports` gets the modules that the function's first call has imported, if any."""
        self.pid = process.pid
        self._stage, self._cpu_s, self._fn_s, self._run_delay_s = stage, 0.0, 0.0, 0.0
        self._on_imports = on_imports
        self._death = _Death(process, sock)
        self._channel = Channel(sock, budget, by_value=by_value, is_dead=self._death.has_come)
        weakref.finalize(self, self._death.at_once)

    def await_ready(self) -> None:
        """Wait until the process has loaded the function. LaneDiedError, with the reason, if it cannot.

        A LostAtStartError if it died first.
        """
        try:
            message = self._channel.take()
        except PeerGoneError:
            raise LostAtStartError(self._obituary("while it started")) from None
        if message.kind != READY:
            self.close()
            raise LaneDiedError(f"stage '{self._stage}': its worker process cannot load the function.\n{message.note}")

    def run(self, items: Sequence[Any], *, within_s: float = math.inf) -> list[Any]:
        try:
            failures = self._channel.post(RUN, items, (within_s, 0.0, 0.0))
            message = self._answer()
            while message.kind == AGAIN:
                failures = self._channel.post(RUN, items, (within_s, 0.0, 0.0), each=True)
                message = self._answer()
            if message.whole and len(message.values) == 1 and isinstance(message.values[0], Unloaded):
                self._channel.post(AGAIN, [])
                message = self._channel.take()
        except UnreadError:
            raise LaneDiedIdleError(self._obituary("before it had read the item")) from None
        except PeerGoneError:
            raise LaneDiedError(self._obituary("at work")) from None
        except BaseException:
            self.kill()  # the two sides are no longer in step
            raise
        self._cpu_s, self._fn_s, self._run_delay_s = message.note
        return _outcomes(message, failures)

    @property
    def cpu_s(self) -> float:
        return self._cpu_s

    @property
    def run_delay_s(self) -> float:
        return self._run_delay_s

    @property
    def fn_s(self) -> float:
        return self._fn_s

    def close(self) -> None:
        self._death.in_order()

    def kill(self) -> None:
        self._death.strike()

    @property
    def is_alive(self) -> bool:
        """Whether the process lives still."""
        return not self._death.has_come()

    def _answer(self) -> Message:
        message = self._channel.take()
        if message.kind == IMPORTED:
            self._on_imports(message.note)
            message = self._channel.take()
        return message

    def _obituary(self, when: str) -> str:
        status = self._death.at_once()
        how = "ended" if status is None else f"exited with status {status}"
        if status is not None and status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            how += " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"stage '{self._stage}': worker process {self.pid} {how} {when}"


@final
class _Death:
    """The end of one process, brought about once, by whichever thread comes first."""

    def __init__(self, process: start.Process, sock: socket.socket) -> None:
        self._process, self._sock = process, sock
        self._owner_pid = os.getpid()
        self._lock = renewed_lock(self, "_lock", threading.Lock)  # around the end itself
        # Around the use of the pidfd; never held for long.
        self._strike_lock = renewed_lock(self, "_strike_lock", threading.Lock)
        self._is_over = False
        self._status: int | None = None

    def has_come(self) -> bool:
        with self._strike_lock:
            return self._is_over or self._process.wait(0.0)

    def strike(self) -> None:
        """Kill, and wait for nothing."""
        with self._strike_lock:
            if not self._is_over and os.getpid() == self._owner_pid:
                self._process.kill()
                start.hang_up(self._sock)

    def at_once(self) -> int | None:
        """Kill, wait, and tell the exit status."""
        self.strike()
        return self.in_order()

    def in_order(self) -> int | None:
        """Hang up, let it finish for a while, kill it if it does not; its exit status, if known."""
        if os.getpid() != self._owner_pid:
            return None  # a forked copy of the parent: these are not its children
        with self._lock:
            if self._is_over:
                return self._status
            start.hang_up(self._sock)
            if not self._process.wait(_CLOSE_S):
                self._process.kill()
                self._process.wait(_CLOSE_S)
            with self._strike_lock:
                self._is_over = True
                self._status = self._process.reap()
                os.close(self._process.pidfd)
            start.close_ours(self._sock)
            return self._status


def _outcomes(message: Message, failures: dict[int, Any]) -> list[Any]:
    outcomes = [_outcome(value) for value in message.values]
    for index, error in sorted(failures.items()):
        if index <= len(outcomes):  # not behind items that were not begun
            outcomes.insert(index, Failed(error))
    return outcomes


def _outcome(value: Any) -> Any:
    return Failed(value.error) if isinstance(value, Unloaded) else value
