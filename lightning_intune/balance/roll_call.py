"""Who has come to which call, and who is at fault where one broke."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import psutil

_GRACE_S: Final = 2.0  # ranks notice a broken group one after another, and ended ones vanish a moment after it
_LOOK_S: Final = 0.05


@final
class RollCall:
    """Marks of all ranks in the job's store: which call each has come to, its process, and whom it blames.

    Whether a rank's process has ended is known on the same machine only; of others one can tell no more than that
    they have not come. `store` has torch's `set`, `get` and `check`.

    Examples:
        >>> import torch.distributed as dist
        >>> store = dist.HashStore()
        >>> here, there = (RollCall(store, rank=rank, world_size=2, timeout_s=5.0) for rank in range(2))
        >>> here.come(), there.come(), here.come(), here.at_fault(since_s=5.0)
        (None, None, None, 'rank 1 did not come within 5 s, or had ended')

    """

    def __init__(
        self,
        store: Any,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        place: str | None = None,
        has_ended: Callable[[str], bool | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout_s = store, rank, world_size, timeout_s
        self._has_ended = has_ended or process_has_ended
        self._clock, self._sleep = clock, sleep
        self._num_calls = 0
        self._store.set(f"place/{rank}", process_place() if place is None else place)

    def come(self) -> None:
        """To the next call; some 0.1 ms."""
        self._num_calls += 1
        self._store.set(f"come/{self._rank}", str(self._num_calls))

    def at_fault(self, since_s: float) -> str:
        """Who is, told to the others too, some seconds later at most; it broke `since_s` after this rank had come."""
        self._store.set(f"broke/{self._rank}", "yes")
        began_s = self._clock()
        while not (text := self._told_by_now(since_s, self._clock() - began_s)):
            self._sleep(_LOOK_S)
        self._store.set(f"blame/{self._rank}", text)
        return text

    def _told_by_now(self, since_s: float, waited_s: float) -> str:
        fates = [self._has_ended(place) for place in self._told("place")]
        # Who found it first was nearest to it. Read after the fates: others end because of it, once they have blamed.
        if blamed := next(filter(None, self._told("blame")), ""):
            return blamed
        if ended := [rank for rank, fate in enumerate(fates) if fate]:
            return f"rank {_listed(ended)} {'has' if len(ended) == 1 else 'have'} ended"
        calls = [int(told or 0) for told in self._told("come")]
        late = [rank for rank, num_calls in enumerate(calls) if num_calls < self._num_calls]
        if late and since_s >= self._timeout_s:
            return f"rank {_listed(late)} did not come within {self._timeout_s:g} s, or had ended"
        if waited_s < _GRACE_S:
            return ""
        if late:
            return f"rank {_listed(late)} had not come when the connection broke"
        # All had come, so one broke it later. Those that live have said by now that they noticed.
        if gone := [rank for rank, told in enumerate(self._told("broke")) if not told]:
            return f"rank {_listed(gone)} had come, and has ended since"
        return "every rank had come, so the connection between them broke"

    def _told(self, what: str) -> list[str]:
        """By rank, what it has put under that name; empty where nothing."""
        keys = [f"{what}/{rank}" for rank in range(self._world_size)]
        return [self._store.get(key).decode() if self._store.check([key]) else "" for key in keys]


def process_place() -> str:
    """Where the calling process is, for others: machine, namespace, number. Empty where a machine has no name."""
    machine = _machine()
    return f"{machine}/{os.getpid()}" if machine else ""


def process_has_ended(place: str) -> bool | None:
    """Whether that process has ended; None where that cannot be told: it runs elsewhere, or never said where."""
    machine, _, pid = place.rpartition("/")
    if not machine or machine != _machine():
        return None
    try:
        return psutil.Process(int(pid)).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """The same for all that see each other's processes by number: this boot of the kernel, and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux, or kept from us: then as if on a machine of its own
        return ""


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
