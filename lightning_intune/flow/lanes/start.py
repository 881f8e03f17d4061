"""Starting worker processes: what every way has in common, and the plain one, a fresh interpreter."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, final

from lightning_intune.flow.lanes.child import Orders
from lightning_intune.flow.lanes.function import PickledFunction, main_origin

_SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch, from 2 MB on; NumPy does so by itself
_ARROW_POOL = "ARROW_DEFAULT_MEMORY_POOL"


class Process(ABC):
    """A started worker process: its pid, a pidfd that says when it is dead, and its exit status after."""

    pid: int
    pidfd: int

    @abstractmethod
    def reap(self) -> int | None:
        """Exit status (negative: the signal) of the dead process; None where nobody knows. Called once."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it is dead within `timeout_s`."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1e3))

    def kill(self) -> None:
        """SIGKILL, if it still lives. Never reaches another process: a pidfd is not reused."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class StarterLostError(OSError):
    """Whoever starts the processes died over it. One may be on its way with this socket: try again, with another."""


class Starter(ABC):
    """Starts worker processes; `close` ends what it keeps for that. Any thread."""

    @abstractmethod
    def start(self, sock: socket.socket, function: PickledFunction | None, orders: Orders) -> Process:
        """A process that runs `child.work` on its end `sock` (left open here).

        OSError when none can be made, StarterLostError when the next attempt may well succeed.
        """

    @abstractmethod
    def close(self) -> None:
        """Harmless when repeated."""


@final
class _Spawned(Process):
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid, self._popen = popen.pid, popen
        self.pidfd = os.pidfd_open(popen.pid)

    def reap(self) -> int | None:
        return self._popen.wait()


@final
class Spawn(Starter):
    """A fresh interpreter per process: nothing shared, nothing inherited, and every import paid again."""

    def start(self, sock: socket.socket, function: PickledFunction | None, orders: Orders) -> Process:
        assert function is not None
        parent = os.pidfd_open(os.getpid())
        orders_fd = os.memfd_create("lightning_intune_orders", os.MFD_CLOEXEC)
        try:
            os.write(orders_fd, pickle.dumps(orders))
            os.lseek(orders_fd, 0, os.SEEK_SET)
            fds = (sock.fileno(), parent, function.fd, orders_fd)
            return _Spawned(execute(f"from lightning_intune.flow.lanes.child import main; main{fds}", *fds))
        finally:
            os.close(parent)
            os.close(orders_fd)

    def close(self) -> None:
        return


def preparation() -> dict[str, Any]:
    """What `multiprocessing.spawn.prepare` wants; its own maker would fix this process's start method by the way."""
    return {
        "sys_path": list(sys.path),
        "sys_argv": list(sys.argv),
        "dir": os.getcwd(),
        "orig_dir": multiprocessing.process.ORIGINAL_DIR,  # pyright: ignore[reportAttributeAccessIssue] - not in the stubs
        "authkey": bytes(multiprocessing.process.current_process().authkey),
        **main_origin(),
    }


def execute(code: str, *fds: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter that runs `code` with our paths and these descriptors; Ctrl-C never reaches it."""
    head = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    head += "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}); "
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    with _interrupts_held():
        return subprocess.Popen(
            [multiprocessing.spawn.get_executable(), *flags, "-c", f"{head}sys.path[:] = {sys.path!r}; {code}"],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )


def environment() -> dict[str, str]:
    """Ours, with native libraries told to use one thread: the stage's width is the parallelism.

    And, unless the user has said something about it, torch to ask for huge pages: a large tensor costs a fifth less.
    And Arrow to allocate with malloc: what a table frees then serves the arrays made of it, where two allocators would
    each keep their own (`keep_all_memory`). 55-70 MiB a process less with batches of 20 MB, as fast.
    """
    return {_HUGE_PAGES: "1", _ARROW_POOL: "system", **os.environ, **dict.fromkeys(_SINGLE_THREADED, "1")}


@contextlib.contextmanager
def _interrupts_held() -> Generator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # an exec'ed child inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- after a fork of this process by anyone ----

_our_sockets: set[socket.socket] = set()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """(ours, the worker's). A fork of this process closes its copy of ours: else the worker would outlive us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _our_sockets.add(ours)
    return ours, theirs


def hang_up(sock: socket.socket) -> None:
    """End the conversation: whoever waits on either side wakes and sees it. From any thread."""
    with contextlib.suppress(OSError):  # the other side was first
        sock.shutdown(socket.SHUT_RDWR)


def close_ours(sock: socket.socket) -> None:
    """Close one of `socket_pair`'s own ends."""
    _our_sockets.discard(sock)
    sock.close()


def _close_all_ours() -> None:
    for sock in list(_our_sockets):
        close_ours(sock)


os.register_at_fork(after_in_child=_close_all_ours)
