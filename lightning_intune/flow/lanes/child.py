"""What runs in a lane's worker process: take items, call the function, send outcomes, and never outlive the parent."""

from __future__ import annotations

import contextlib
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lightning_intune.flow.allocator import keep_all_memory
from lightning_intune.flow.lanes.arena import Budget
from lightning_intune.flow.lanes.function import load_function
from lightning_intune.flow.lanes.lane import Failed
from lightning_intune.flow.lanes.late_imports import LateImports
from lightning_intune.flow.lanes.reducers import RemoteTraceback, UnpicklableError
from lightning_intune.flow.lanes.wire import AGAIN, BROKEN, DONE, IMPORTED, READY, RUN, Channel, PeerGoneError, Unloaded

_RANDOM = np.random  # NumPy loads it at first use: now, not in every fork (10 ms)
MAIN_AGAIN = "__mp_main__"  # multiprocessing's name for the parent's script, imported here
_GRACE_S = 1.0  # between the parent's end and this process's, for code that is just finishing


@final
@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a worker process is told at birth. Pickled by the parent, with standard types only."""

    preparation: dict[str, Any]
    """From multiprocessing: sys.path, argv, working directory, and where `__main__` comes from."""
    environ: dict[str, str]
    needs_main: bool
    by_value: bool
    num_bytes: int
    """Size of the function's memfd."""
    max_shared_bytes: int
    max_idle_bytes: int | None


def main(sock_fd: int, parent: int, fn_fd: int, orders_fd: int) -> None:
    """Entry of a spawned process."""
    with open(orders_fd, "rb") as file:
        orders = pickle.load(file)
    sys.exit(work(socket.socket(fileno=sock_fd), parent, fn_fd, orders))


def work(sock: socket.socket, parent: int, fn_fd: int, orders: Orders, fn: Callable[[Any], Any] | None = None) -> int:
    """The process's life; returns its exit status. `parent` is a pidfd of the process it serves."""
    watch_parent(sock, parent)
    channel = Channel(sock, Budget(orders.max_shared_bytes, orders.max_idle_bytes), by_value=orders.by_value)
    try:
        try:
            settle_in(orders)
            fn = fn or load_function(fn_fd, orders.num_bytes)
        except BaseException:  # noqa: BLE001 - told to the parent
            channel.post(BROKEN, [], traceback.format_exc())
            return 1
        finally:
            if fn_fd >= 0:
                os.close(fn_fd)
        _tame_libraries()
        channel.post(READY, [], os.getpid())
        return _serve(channel, fn, orders)
    except PeerGoneError:
        return 0


def _serve(channel: Channel, fn: Callable[[Any], Any], orders: Orders) -> int:
    start_s, pid = time.process_time(), os.getpid()  # imports are not the items' cost
    queue = RunQueue()
    last, fn_s = list[Any](), 0.0
    main_tried = orders.needs_main
    late: LateImports | None = LateImports()
    while True:
        message = channel.take()
        if message.kind == AGAIN:  # the parent could not load the chunk in one piece
            _reply(channel, last, (time.process_time() - start_s, fn_s, queue.run_delay_s()), each=True)
            continue
        assert message.kind == RUN
        items = message.values
        if Unloaded in map(type, items):
            if not main_tried and any("__main__" in str(item.error) for item in items if isinstance(item, Unloaded)):
                main_tried = True
                import_main(orders)
                channel.post(AGAIN, [])
                continue
            if message.whole:
                channel.post(AGAIN, [])
                continue
        try:
            last, spent_s = _work_off(fn, items, message.note[0])
        except SystemExit as end:
            return _exit_status(end)
        if os.getpid() != pid:
            os._exit(0)  # the function has forked, and returned here too: the answer is its parent's to give
        fn_s += spent_s
        if late is not None:
            if names := late.found():
                channel.post(IMPORTED, [], names)
            late = None
        _reply(channel, last, (time.process_time() - start_s, fn_s, queue.run_delay_s()))
        if len(last) < 2 or not message.whole:
            last = []  # arrays that went one by one need no second sending
        del message, items


@final
class RunQueue:
    """How long this thread has been runnable without a core since this object was made."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1  # no schedstat here (macOS, some kernels): the meter's documented fallback
        self._start_s = 0.0
        self._start_s = self.run_delay_s()

    def run_delay_s(self) -> float:
        """Seconds; 0.0 where the kernel does not say."""
        if self._fd < 0:
            return 0.0
        return int(os.pread(self._fd, 64, 0).split()[1]) * 1e-9 - self._start_s


def _work_off(fn: Callable[[Any], Any], items: list[Any], within_s: float) -> tuple[list[Any], float]:
    """Outcomes of the items that were begun within that time, and the seconds they took."""
    outcomes, began_s, spent_s = list[Any](), time.perf_counter(), 0.0
    for item in items:
        outcomes.append(call(fn, item))
        spent_s = time.perf_counter() - began_s
        if spent_s > within_s:
            break
    return outcomes, spent_s


def call(fn: Callable[[Any], Any], item: Any) -> Any:
    """`fn(item)`, or a `Failed` that can cross, with the traceback as text. Only SystemExit comes through."""
    if isinstance(item, Unloaded):
        text = "".join(traceback.format_exception(item.error))
        return _failed(UnpicklableError(f"the item cannot be unpickled in the worker process: {item.error}"), text)
    try:
        return fn(item)
    except SystemExit:
        raise  # asks for the process's end, and gets it
    except BaseException as error:  # noqa: BLE001 - raised in the consumer
        text = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001
            error = UnpicklableError(f"{type(error).__qualname__}: {error} (the error itself cannot be pickled)")
        return _failed(error, text)


def _failed(error: BaseException, text: str) -> Failed:
    error.__cause__ = RemoteTraceback(text)
    return Failed(error)


def _reply(channel: Channel, outcomes: list[Any], seconds: tuple[float, float, float], *, each: bool = False) -> None:
    channel.post(DONE, outcomes, seconds, each=each, instead=_cannot_cross)


def _cannot_cross(error: UnpicklableError) -> Failed:
    return Failed(UnpicklableError(f"the function's result cannot leave the worker process: {error}"))


def _exit_status(end: SystemExit) -> int:
    if end.code is None:
        return 0
    return end.code if isinstance(end.code, int) else 1


# ---- a good guest ----


def watch_parent(sock: socket.socket, parent: int) -> None:
    """Start a thread that ends this process when its parent dies or hangs up, whatever the main thread is doing."""

    def watch() -> None:
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.register(sock.fileno(), select.POLLHUP)
        poll.poll()
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def settle_in(orders: Orders) -> None:
    """Take over the parent's paths, environment and, where the function needs it, its `__main__`."""
    os.environ.update(orders.environ)
    preparation = dict(orders.preparation)
    if not orders.needs_main:
        preparation.pop("init_main_from_name", None)
        preparation.pop("init_main_from_path", None)
    with importing_main():
        multiprocessing.spawn.prepare(preparation)


def import_main(orders: Orders) -> None:
    """Import the parent's script, as multiprocessing does: an item's class turned out to live there."""
    wanted = {key: value for key, value in orders.preparation.items() if key.startswith("init_main")}
    try:
        with importing_main():
            multiprocessing.spawn.prepare(wanted)
    except Exception:  # noqa: BLE001 - the item's own error reaches the user; this one explains it
        traceback.print_exc()


_importing_main = False


@contextlib.contextmanager
def importing_main() -> Generator[None]:
    """While a script is imported a second time, process lanes made by it would never end: see `is_importing_main`."""
    global _importing_main
    _importing_main = True
    try:
        yield
    finally:
        _importing_main = False


def is_importing_main() -> bool:
    """Whether this is a worker process in the middle of importing the parent's script."""
    return _importing_main


def _tame_libraries() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it ends its lanes
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Forked siblings must not share the state of the global generators (`random` sees to itself).
    _RANDOM.seed(int.from_bytes(os.urandom(4), "little"))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the stage's width is the parallelism
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(7), "little"))
    keep_all_memory()
