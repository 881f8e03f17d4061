"""Where the threads of a run wait for each other: one lock, and the word to leave."""

from __future__ import annotations

import threading
from collections import deque
from typing import final

Bench = deque[threading.Lock]
"""The bells of the workers that wait for one event, first come first served."""


@final
class Gate:
    """The lock of a run, and the benches beside it. It refers to nothing else.

    So a thread that waits here keeps no node alive, and the finalizer of a node may `close` it. The lock is re-entrant
    because a garbage collection inside it may run that finalizer. All but `close` and `doze` is called under the lock.
    """

    def __init__(self) -> None:
        self.is_closing = False
        """Everyone is to leave after the item in hand."""
        self.renew()

    def renew(self) -> None:
        """In a forked child: whoever held the lock or waits here is not there."""
        self.lock = threading.RLock()
        self.has_item = threading.Condition(self.lock)
        """For consumers."""
        self.can_claim: Bench = deque()
        """For workers without work."""
        self.has_room: Bench = deque()
        """For workers with items that the byte bound does not let in."""
        self.dozing: Bench = deque()
        """For workers that wait before they try an item again."""

    def park(self, bench: Bench, bell: threading.Lock) -> None:
        """Wait on `bench` until `bell` is rung, with the lock let go meanwhile; it must be held once."""
        bench.append(bell)
        # Not before: a garbage collection may have closed the gate, and rung all bells, in this very thread.
        if self.is_closing:
            return
        self.lock.release()
        try:
            bell.acquire()
        finally:
            self.lock.acquire()

    def doze(self, bell: threading.Lock, seconds: float) -> bool:
        """Wait for `seconds`, less when the gate closes; whether it is still open. Not under the lock."""
        with self.lock:
            if self.is_closing or seconds <= 0:
                return not self.is_closing
            self.dozing.append(bell)
        is_rung = bell.acquire(timeout=seconds)
        with self.lock:
            if not is_rung and bell in self.dozing:
                self.dozing.remove(bell)
            elif not is_rung:
                bell.acquire()  # rung in between: it is to be silent again
        return not self.is_closing

    def close(self) -> None:
        """Tell everyone to leave. Waits for nobody; safe in a finalizer, and from any thread."""
        self.is_closing = True
        with self.lock:
            ring_all(self.can_claim)
            ring_all(self.has_room)
            ring_all(self.dozing)
            self.has_item.notify_all()


def ring(bench: Bench) -> None:
    """Wake whoever has waited longest, if anybody waits."""
    if bench:
        bench.popleft().release()


def ring_all(bench: Bench) -> None:
    """Wake all who wait."""
    while bench:
        bench.popleft().release()
