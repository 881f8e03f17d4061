"""Who is at fault when a ring breaks: what the ranks tell each other through the job's store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

from lightning_intune.overlap.ring import Kind, RingError

_GRACE_S = 2.0  # ranks notice a broken ring one after another
_POLL_S = 0.02


@final
class RollCall:
    """One ring's ranks: which call each has come to, and whom each waits for once the ring is broken.

    In a ring a fault shows at the neighbours alone; the others find that *those* have closed. So a rank that gives up
    says whom it waited for before it closes; to follow these from rank to rank leads to one that said nothing, the one
    at fault. The first who knows says it for all.
    """

    def __init__(
        self,
        store: Any,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._rank, self._world_size, self._timeout_s = store, rank, world_size, timeout_s
        self._clock, self._sleep = clock, sleep

    def come(self, call: int) -> None:
        """Say that this rank is at call number `call`."""
        self._store.set(f"come/{self._rank}", str(call))

    def judge(self, call: int, error: RingError, hang_up: Callable[[], None]) -> str:
        """Who is at fault, the same on all ranks; `hang_up` closes this rank's connections, so that others notice."""
        is_sure = error.kind in (Kind.WRONG, Kind.OWN)
        if error.kind is Kind.ENDED:
            is_sure = not self._told("broke", error.rank)  # one that gives up says so first
        points_at = error.rank if is_sure else error.waits_for
        self._store.set(f"broke/{self._rank}", str(points_at))
        hang_up()
        if is_sure:
            return self._agree(self._charge(call, error))
        until_s = self._clock() + _GRACE_S
        # One that waits in the call before for the one at fault is late as well, but gives up and says so.
        while len(late := self._late(call)) > 1 and not self._is_known() and self._clock() < until_s:
            self._sleep(_POLL_S)
        if error.kind is Kind.LATE and late:
            names = ", ".join(map(str, late))
            return self._agree(f"rank {names} did not come within {self._timeout_s:g} s, or had ended")
        while not self._is_known() and self._clock() < until_s:
            self._sleep(_POLL_S)
        return self._agree(self._follow(points_at))

    def _late(self, call: int) -> list[int]:
        """Ranks that have not come to it, less those that have given up."""
        ranks = range(self._world_size)
        return [rank for rank in ranks if int(self._told("come", rank) or 0) < call and not self._told("broke", rank)]

    def _is_known(self) -> bool:
        return self._store.check(["blame"])

    def _charge(self, call: int, error: RingError) -> str:
        if error.kind is Kind.ENDED:
            if int(self._told("come", error.rank) or 0) < call:
                return f"rank {error.rank} did not come, and its connection is closed: it has ended"
            return f"rank {error.rank} had come, and has ended since, or its connection broke"
        return f"rank {error.rank} failed: {error}" if error.kind is Kind.OWN else str(error)

    def _follow(self, rank: int) -> str:
        seen: set[int] = {self._rank}
        while rank not in seen:
            waits_for = self._told("broke", rank)
            if not waits_for:
                return f"rank {rank} had come, and has ended or stood still since"
            seen.add(rank)
            rank = int(waits_for)
        return f"every rank had come, so the network between them broke, or takes longer than {self._timeout_s:g} s"

    def _agree(self, text: str) -> str:
        return self._store.compare_set("blame", "", text).decode()

    def _told(self, what: str, rank: int) -> str:
        key = f"{what}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else ""
