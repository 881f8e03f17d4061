"""The ranks of one host share its CPUs and memory: each posts its need to a store, the local leader divides."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final

from lightning_intune.control.arbiter import Arbiter
from lightning_intune.control.budget import BudgetReading, ReadsBudget
from lightning_intune.control.shared_budget import Demand, SharedBudget
from lightning_intune.control.system_file import read_text

_log = logging.getLogger("lightning_intune")

_PREFIX = "lightning_intune/budget"
_MEMORY_GROWTH = 1.5
"""Memory wanted over memory held."""


class Ledger(Protocol):
    """What is used of a `torch.distributed.Store`. `get` is only called for keys that are there, so nothing waits."""

    def set(self, key: str, value: str) -> None:
        """Write."""
        ...

    def get(self, key: str) -> bytes:
        """Read."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all are there."""
        ...

    def add(self, key: str, value: int) -> int:
        """Add to a counter, which begins at 0; the sum."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank runs. Ranks of one `host` share memory; those of one `cpu_pool` on it share CPUs too."""

    rank: int
    host: str
    cpu_pool: str

    @classmethod
    def here(cls, rank: int, proc_root: Path = Path("/proc")) -> Place:
        """Of this process: ranks that are in one control group of one machine share, by the CPUs they may run on."""
        try:
            group = os.readlink(proc_root / "self" / "ns" / "cgroup")
        except OSError:  # not Linux
            group = ""
        parts = [
            socket.gethostname(),
            read_text(f"{proc_root}/sys/kernel/random/boot_id"),
            group,
            read_text(f"{proc_root}/self/cgroup"),
        ]
        status = read_text(f"{proc_root}/self/status").splitlines()
        allowed = [line for line in status if line.startswith("Cpus_allowed")]
        return cls(rank=rank, host=_digest(*parts), cpu_pool=_digest(*allowed))


@final
@dataclass
class _Member:
    """What the leader knows of a rank."""

    beat: str = ""
    age_s: float = 0.0
    demand: dict[str, Any] | None = None


@final
class RankBudget(SharedBudget):
    """One rank's part of `whole`, the budget of its host.

    Every rank posts what it could use after each of its turns and reads its share at the next; the lowest rank alive on
    the host divides (`Arbiter`) and publishes shares that sum to 1. Nobody waits: until shares are published all have
    equal ones, and a ledger that fails is logged once and not used again. A rank from which nothing was heard for
    `stale_s` of the leader's own active time loses its part until it is heard again; a leader that fell silent is
    followed by the next rank after as long, times the ranks before it. Active time counts at most `most_gap_s` per
    turn: in a validation all stand still. One thread's.
    """

    def __init__(
        self,
        whole: ReadsBudget,
        ledger: Ledger,
        place: Place,
        *,
        clock: Callable[[], float] = time.monotonic,
        stale_s: float = 10.0,
        most_gap_s: float = 3.0,
    ) -> None:
        self._whole, self._ledger, self._place, self._clock = whole, ledger, place, clock
        self._stale_s, self._most_gap_s = stale_s, most_gap_s
        self._key = f"{_PREFIX}/{place.host}"
        self._has_failed = False
        self._joined = self._num_joined = 0
        self._beat = 0
        self._members: dict[int, _Member] = {}
        self._num_known = 0
        self._published: dict[str, Any] | None = None
        self._silent_s = 0.0
        self._looked_s: float | None = None
        self._last = BudgetReading(cpus=1.0, memory_bytes=0, memory_limit_bytes=2**62)
        self._cpus: dict[str, Arbiter[int]] = {}
        self._memory: Arbiter[int] = Arbiter()
        self._safely(self._join)

    @property
    def is_leader(self) -> bool:
        """Whether this rank divides at present."""
        before = sum(rank < self._place.rank for rank in self._members)
        if before == 0 or (self._published is not None and self._published["leader"] == self._place.rank):
            return True
        return self._silent_s > self._stale_s * before

    def read(self) -> BudgetReading:
        self._last = whole = self._whole.read()
        self._safely(self._look)
        cpus, memory = self._shares()
        return replace(
            whole, cpus=max(0.1, whole.cpus * cpus), memory_limit_bytes=int(whole.memory_limit_bytes * memory)
        )

    def tell(self, demand: Demand) -> None:
        self._safely(self._post, demand)

    def rest(self) -> None:
        """All ranks of a job stand still together: nothing to give away."""

    # ---- below, whatever the ledger raises ends its use ----

    def _safely(self, do: Callable[..., None], *args: Any) -> None:
        if self._has_failed:
            return
        try:
            do(*args)
        except Exception:  # noqa: BLE001 - a store that is gone or a message that is not ours must not end the training
            self._has_failed = True
            _log.exception(
                "tuner: rank %d lost touch with the ranks on its host; its share of CPUs and memory stays as it is",
                self._place.rank,
            )

    def _join(self) -> None:
        self._joined = self._ledger.add(f"{self._key}/joined", 1)
        self._ledger.set(f"{self._key}/rank/{self._joined}", str(self._place.rank))
        self._meet()

    def _meet(self) -> None:
        # New ranks: whoever joined has left its rank, at once or a moment later.
        self._num_joined = self._ledger.add(f"{self._key}/joined", 0)
        while self._num_known < self._num_joined and self._ledger.check([f"{self._key}/rank/{self._num_known + 1}"]):
            self._num_known += 1
            rank = int(self._ledger.get(f"{self._key}/rank/{self._num_known}"))
            self._members.setdefault(rank, _Member())

    def _look(self) -> None:
        now_s = self._clock()
        passed_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, self._most_gap_s)
        self._looked_s = now_s
        self._silent_s += passed_s
        for member in self._members.values():
            member.age_s += passed_s
        if self._published is None:
            self._meet()
            if not self._ledger.check([f"{self._key}/shares"]):
                return
        found = json.loads(self._ledger.get(f"{self._key}/shares"))
        if self._published is None or found["beat"] != self._published["beat"]:
            self._silent_s = 0.0
        self._published = found

    def _shares(self) -> tuple[float, float]:
        found = (self._published or {"shares": {}})["shares"].get(str(self._place.rank))
        if found is None:  # nothing published yet, or not with this rank in it
            equal = 1.0 / max(1, len(self._members))
            return equal, equal
        return float(found[0]), float(found[1])

    def _post(self, demand: Demand) -> None:
        self._beat += 1
        beat = f"{self._joined}.{self._beat}"
        message = {
            "beat": beat,
            "pool": self._place.cpu_pool,
            "pool_cpus": self._last.cpus,
            "cpus": demand.cpus,
            "memory": demand.memory_bytes,
        }
        self._ledger.set(f"{self._key}/need/{self._place.rank}", json.dumps(message))
        if self.is_leader:
            self._hear()
            self._publish(beat)

    def _hear(self) -> None:
        self._meet()
        for rank, member in self._members.items():
            key = f"{self._key}/need/{rank}"
            if member.demand is None and not self._ledger.check([key]):
                continue
            found = json.loads(self._ledger.get(key))
            if found["beat"] != member.beat:
                member.beat, member.age_s, member.demand = found["beat"], 0.0, found

    def _publish(self, beat: str) -> None:
        whole = self._last
        # Who joined and has posted nothing yet is waited for as long as for anyone, with an equal part.
        heard = {rank: member.demand for rank, member in self._members.items() if member.age_s <= self._stale_s}
        wants = {rank: _number(demand, "memory") for rank, demand in heard.items()}
        memory = self._memory.shares(
            float(whole.memory_limit_bytes), {rank: _MEMORY_GROWTH * held for rank, held in wants.items()}, wants
        )
        cpus: dict[int, float] = {}
        pools = {rank: self._place.cpu_pool if demand is None else demand["pool"] for rank, demand in heard.items()}
        for pool in set(pools.values()):
            inside = {rank: demand for rank, demand in heard.items() if pools[rank] == pool}
            sizes = [demand["pool_cpus"] for demand in inside.values() if demand is not None]
            needs = {rank: _number(demand, "cpus") for rank, demand in inside.items()}
            cpus |= self._cpus.setdefault(pool, Arbiter()).shares(min(sizes, default=whole.cpus), needs)
        shares = {str(rank): (cpus[rank], memory[rank]) for rank in heard}
        message = json.dumps({"leader": self._place.rank, "beat": f"{self._place.rank}.{beat}", "shares": shares})
        self._ledger.set(f"{self._key}/shares", message)


def among_ranks(whole: ReadsBudget, *, clock: Callable[[], float] = time.monotonic) -> ReadsBudget:
    """`whole` shared with the ranks of this host, where torch.distributed is initialized with several; else `whole`.

    Over a connection of its own to the process group's store: another thread may be waiting on the group's.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return whole
    from datetime import timedelta

    try:
        # There is no public way to the store that init_process_group made (torch 2.13).
        from torch.distributed.distributed_c10d import _get_default_store  # pyright: ignore[reportPrivateUsage]

        store: Any = _get_default_store()
        store = store.clone()  # torch's types do not know it
        store.set_timeout(timedelta(seconds=2))
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        _log.warning("tuner: this torch shows no store (%s); ranks of a host do not share one budget", error)
        return whole
    return RankBudget(whole, store, Place.here(dist.get_rank()), clock=clock)


def _number(demand: dict[str, Any] | None, key: str) -> float:
    return float("nan") if demand is None else float(demand[key])


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
