"""Work that a rank does beside the training, in step with the other ranks, and how it comes to its end."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, final

from lightning_intune.flow.node import BaseNode, shut_down


@final
class Ahead:
    """One round of such work, in a thread that ends with it. Any thread may wait for it or stop it.

    `work` is handed an event that is set when it is to read no more; the other ranks must be told all the same, as
    every rank that took as many steps has begun the same round. What it raises is in `failure`, after the end.
    """

    def __init__(self, work: Callable[[threading.Event], None], *, owner: str, is_stopped: bool = False) -> None:
        self.failure: Exception | None = None
        self._work, self._owner = work, owner
        self._stopped, self._woken = threading.Event(), threading.Event()
        if is_stopped:
            self._stopped.set()
        self._thread = threading.Thread(target=self._run, name=owner, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self._stopped)
        except Exception as raised:  # noqa: BLE001 - raised in the consumer
            self.failure = raised
        finally:
            self._woken.set()

    @property
    def has_ended(self) -> bool:
        """Whether its results may be read."""
        return not self._thread.is_alive()

    def wait(self) -> bool:
        """Wait for its end, or for `release`; whether it has ended."""
        self._woken.wait()
        if self._stopped.is_set():
            return self.has_ended
        self._thread.join()
        return True

    def release(self) -> None:
        """Let it read no more, and let whoever waits for it go."""
        self._stopped.set()
        self._woken.set()

    def end(self, sources: Iterable[BaseNode[Any]], wait_s: float | None, *, must_end: bool) -> None:
        """Let it come to its end: nothing more is read from `sources`, and the other ranks are waited for.

        After `wait_s` (None: as long as the ranks' own timeout lets it) RuntimeError with `must_end`, else a warning.
        """
        if self.has_ended:
            return
        self.release()
        for source in sources:
            shut_down(source)  # releases a read that waits
        self._thread.join(wait_s)
        if self.has_ended:
            return
        assert wait_s is not None, "without a bound it has ended"
        text = (
            f"{self._owner}: after {wait_s:g} s the other ranks have not come to the window that this one has begun. "
            "Every rank must take equally many steps before it stops or begins anew."
        )
        if must_end:
            raise RuntimeError(text)
        warnings.warn(text, ResourceWarning, stacklevel=4)
