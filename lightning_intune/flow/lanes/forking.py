"""Worker processes as forks: of a preloaded server shared by all, or, on request, of this process as it is."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any, final

import psutil

from lightning_intune.errors import ConfigError
from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes import server as server_side
from lightning_intune.flow.lanes.child import Orders
from lightning_intune.flow.lanes.function import PickledFunction
from lightning_intune.flow.lanes.start import (
    Process,
    Starter,
    StarterLostError,
    close_ours,
    execute,
    hang_up,
    socket_pair,
)

_Launched = tuple[int, Callable[[], object]]  # pid, and a call that waits for its end


@final
class _Forked(Process):
    def __init__(self, pid: int, server: _Server) -> None:
        self.pid, self._server = pid, server
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # still its server's child, living or zombie: the number is not another's
            self.reap()
            raise

    def reap(self) -> int | None:
        with contextlib.suppress(OSError):
            return self._server.request(server_side.REAP, self.pid)
        return None  # the server is gone, and with it the knowledge


@final
class _Server:
    """One running fork server, seen from the parent. Any thread."""

    def __init__(self, launch: Callable[[int, int], _Launched]) -> None:
        """`launch` starts the process, given its end of the socket and our pidfd."""
        self._sock, theirs = socket_pair()
        self._lock = renewed_lock(self, "_lock", threading.Lock)
        self.owner_pid = os.getpid()
        parent = os.pidfd_open(self.owner_pid)
        try:
            self.pid, self._wait = launch(theirs.fileno(), parent)
        finally:
            theirs.close()
            os.close(parent)

    def request(self, what: str, argument: Any, fds: tuple[int, ...] = ()) -> Any:
        """One question and its answer. OSError when the server is gone."""
        with self._lock:
            socket.send_fds(self._sock, [pickle.dumps((what, argument))], fds)
            answer = self._sock.recv(server_side.MAX_PACKET_BYTES)
        if not answer:
            raise ConnectionResetError("the fork server is gone")
        return pickle.loads(answer)

    def end(self) -> None:
        """Kill it, and with it what children it has left; it holds nothing else. Harmless when repeated."""
        if self.owner_pid != os.getpid():
            return
        hang_up(self._sock)  # whoever waits for an answer stops waiting
        with self._lock:
            if self._wait is None:
                return
            os.kill(self.pid, signal.SIGKILL)
            self._wait()
            self._wait = None
            close_ours(self._sock)


@final
class ForkServer(Starter):
    """The interpreter's own fork server: exec'ed at first use, shared by all pools, ended at exit or by `close`.

    Ours and not multiprocessing's, which (3.11) fixes its preloads before the first start, ignores
    `sys.path` while preloading, swallows why, and brings a resource tracker. It also takes modules later.
    """

    def __init__(self) -> None:
        self._lock = renewed_lock(self, "_lock", threading.Lock)
        self._server: _Server | None = None
        self._retired: list[_Server] = []
        self._unfit: set[str] = set()

    @property
    def pids(self) -> set[int]:
        """The server's process, if there is one. No leak: it ends with this interpreter, however that ends."""
        with self._lock:
            return {server.pid for server in [self._server, *self._retired] if server is not None}

    def cpu_s(self) -> float:
        """CPU seconds that the server has used, mostly for imports; 0.0 without one."""
        total_s = 0.0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):  # it has just ended
                times = psutil.Process(pid).cpu_times()
                total_s += times.user + times.system
        return total_s

    def start(self, sock: socket.socket, function: PickledFunction | None, orders: Orders) -> Process:
        assert function is not None
        while True:
            server, modules = self._running(), [name for name in function.modules if name not in self._unfit]
            late = list(function.late_modules)
            try:
                answer = server.request(server_side.FORK, (orders, modules, late), (sock.fileno(), function.fd))
            except OSError as error:
                self._discard(server)  # it was killed: the next one may live
                function.late_modules = ()  # and if an import of these killed it, each process can do that by itself
                raise StarterLostError("the fork server is gone") from error
            if isinstance(answer, int):
                return _Forked(answer, server)
            if answer in late:
                function.late_modules = ()
            self._unfit.add(answer)  # imported by each process for itself, forked from a server that has not
            self._retire(server)

    def close(self) -> None:
        with self._lock:
            servers, self._server, self._retired = [self._server, *self._retired], None, []
        for server in servers:
            if server is not None:
                server.end()

    def forget(self) -> None:
        """In a forked copy of this process: the server belongs to the original."""
        self._lock, self._server, self._retired = threading.Lock(), None, []

    def _running(self) -> _Server:
        with self._lock:
            if self._server is None:
                self._server = _Server(self._launch)
            return self._server

    def _discard(self, server: _Server) -> None:
        with self._lock:
            if self._server is server:
                self._server = None
        server.end()

    def _retire(self, server: _Server) -> None:
        with self._lock:
            if self._server is server:  # it forks no more, but the processes it has made live on
                self._retired.append(server)
                self._server = None

    def _launch(self, sock_fd: int, parent: int) -> _Launched:
        code = f"from lightning_intune.flow.lanes.server import main; main({sock_fd}, {parent})"
        popen = execute(code, sock_fd, parent)
        return popen.pid, popen.wait


@final
class Fork(Starter):
    """Forks of this process: made by a server that is itself forked here and now, and so has one thread.

    The function is inherited, so it need not pickle. Only when asked for: a lock held, or an OpenMP
    pool used, in this process stays locked in the copy for ever (LANES.md: 3 hangs in 3).
    """

    def __init__(self, fn: Callable[[Any], Any], *, stage: str) -> None:
        _refuse_threads(stage)
        self._fn = fn
        self._server = _Server(self._launch)

    def start(self, sock: socket.socket, function: PickledFunction | None, orders: Orders) -> Process:
        del function  # inherited
        return _Forked(self._server.request(server_side.FORK, (orders, [], []), (sock.fileno(),)), self._server)

    def close(self) -> None:
        self._server.end()

    def _launch(self, sock_fd: int, parent: int) -> _Launched:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads: `_refuse_threads` has looked
            pid = os.fork()
        if pid:
            return pid, lambda: os.waitpid(pid, 0)
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            server_side.run(sock_fd, parent, self._fn)
        finally:
            os._exit(0)


def _refuse_threads(stage: str) -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        raise ConfigError(
            f"stage '{stage}': context='fork' with other threads running ({', '.join(others)}): a lock that one of "
            "them holds would stay locked in every worker process. Use context='forkserver', or build the stage first."
        )
    num_native = len(os.listdir("/proc/self/task")) - threading.active_count()
    if num_native > 0:
        text = (
            f"stage '{stage}': context='fork' while {num_native} native threads run (OpenMP, OpenBLAS): their pools do "
            "not live on in a fork and code that uses them there can hang. context='forkserver' has no such risk."
        )
        warnings.warn(text, RuntimeWarning, stacklevel=5)


FORK_SERVER = ForkServer()
os.register_at_fork(after_in_child=FORK_SERVER.forget)
atexit.register(FORK_SERVER.close)
