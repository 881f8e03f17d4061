"""The one thread that exchanges, beside the training."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar, final

T = TypeVar("T")

_Job = tuple[Callable[[], Any], "Future[Any]"]


@final
class Worker:
    """Does jobs in the order they come. Behind one that fails none is done: they end with the same error.

    The thread begins with the first job, and ends with `shutdown` or when nobody holds the worker any more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """What `job` returns or raises, later."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def shutdown(self, wait_s: float) -> bool:
        """Let it end behind the jobs it has; whether it has ended within `wait_s`."""
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._jobs.put(None)
        thread.join(wait_s)
        has_ended = not thread.is_alive()
        self._jobs = SimpleQueue()
        return has_ended


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    failure: Exception | None = None
    while (entry := jobs.get()) is not None:
        job, future = entry
        if failure is None:
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - raised in whoever waits
                failure = error
        if failure is not None:
            future.set_exception(failure)
        del entry, job, future  # no batch is held while it waits
