"""The fork server: a process with the heavy imports done, of one thread only, which forks worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_intune.flow.lanes import child

# Requests: pickled tuples, packet by packet.
FORK, REAP = "fork", "reap"
MAIN = "__main__"  # among the modules: the parent's script
_PR_SET_PDEATHSIG = 1
_FORK_SAFE = ("jemalloc_bg_thd",)  # pyarrow's import starts it; jemalloc stops and restarts it around a fork
MAX_PACKET_BYTES = 1 << 17


def main(sock_fd: int, parent_fd: int) -> None:
    """Entry of the exec'ed server: serve until the parent hangs up or dies."""
    run(sock_fd, parent_fd)


def run(sock_fd: int, parent: int, fn: Callable[[Any], Any] | None = None) -> None:
    """Answer FORK and REAP requests. `fn`, where the server was itself forked, is inherited by its children."""
    with socket.socket(fileno=sock_fd) as sock, contextlib.suppress(OSError):  # hung up on while we answered
        _serve(sock, parent, fn)


def _serve(sock: socket.socket, parent: int, fn: Callable[[Any], Any] | None) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(parent, select.POLLIN)
    while True:
        if all(fd != sock.fileno() for fd, _ in poll.poll()):
            return  # the parent is dead; what it left in the socket matters to nobody
        try:
            packet, fds, _, _ = socket.recv_fds(sock, MAX_PACKET_BYTES, 2)
        except OSError:
            return
        if not packet:
            return
        what, argument = pickle.loads(packet)
        if what == REAP:
            sock.send(pickle.dumps(_reap(argument)))
        else:
            sock.send(pickle.dumps(_fork(sock, parent, fds, argument, fn)))


def _fork(
    sock: socket.socket,
    parent: int,
    fds: list[int],
    argument: tuple[child.Orders, list[str], list[str]],
    fn: Callable[[Any], Any] | None,
) -> int | str:
    """The child's pid, or the name of a module unfit to be imported before a fork: then this server must fork no more.

    `argument` has the modules that the function names, and those that its first call was seen to import.
    """
    orders, modules, late = argument
    if fn is None and (unfit := _preload(orders, modules) or _preload(orders, late, may_open=False)):
        for fd in fds:
            os.close(fd)
        return unfit
    server_pid = os.getpid()
    lane_fd = fds[0]
    fn_fd = fds[1] if len(fds) > 1 else -1
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)  # else a sibling inherits the lane's end, and its death goes unseen
        return pid
    status = 1
    try:
        sock.close()
        _die_with(server_pid)
        status = child.work(socket.socket(fileno=lane_fd), parent, fn_fd, orders, fn)
    except BaseException:  # noqa: BLE001 - nobody above us: print and end
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


_failed_late: set[str] = set()


def _preload(orders: child.Orders, modules: list[str], *, may_open: bool = True) -> str | None:
    """Import what the function needs, once for all its lanes. What fails fails again in the child, and is told.

    Returns the module that left a thread running, if one did: a lock held by that thread would stay locked in forks.
    Without `may_open` also one that left a file, a socket or a device open: forks would share it, where each process
    was to have its own.
    """
    loaded = sys.modules.keys() | _failed_late
    wanted = [name for name in modules if (child.MAIN_AGAIN if name == MAIN else name) not in loaded]
    if not wanted:
        return None
    sys.path[:] = orders.preparation["sys_path"]
    num_open = _num_open()
    for name in wanted:
        with contextlib.suppress(Exception):
            child.settle_in(orders) if name == MAIN else importlib.import_module(name)
        if _has_threads() or (not may_open and _num_open() > num_open):
            return name
        if not may_open and name not in sys.modules:
            _failed_late.add(name)  # a name that no import brings: it is not tried at every fork
    gc.collect()
    gc.freeze()  # or the first collection in each child would touch, and so copy, every page
    return None


def _num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def _has_threads() -> bool:
    """Whether there are threads beside this one; those that see to forks themselves do not count."""
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    return sum(name not in _FORK_SAFE for name in names) > 1


def _reap(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def _die_with(server_pid: int) -> None:
    """Have the kernel kill this process when the server ends; a busy C call cannot delay that, unlike a watchdog.

    PDEATHSIG fires when the *thread* that forked ends: the server has but one, for all its life.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server_pid:
        os._exit(1)
