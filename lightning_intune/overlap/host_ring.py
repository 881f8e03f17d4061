"""The transport around a ring of CPU sockets, for a device's tensors too."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.rendezvous import Rendezvous, own_address
from lightning_intune.overlap.ring import Kind, Ring, RingError
from lightning_intune.overlap.roll_call import RollCall
from lightning_intune.overlap.staging import Staging, packed

T = TypeVar("T")


@final
class HostRingTransport:
    """CPU and CUDA tensors of any dtype over TCP between neighbouring ranks, with no group of torch.distributed's.

    Its default group's store is how the ranks meet, and where one reads who was at fault. A rank that dies, or does
    not come within `timeout_s`, ends all the others with a RuntimeError that names it; with no connection left open.

    In a ring of N ranks what two exchange crosses N / 2 connections on average, so it carries as much as a direct
    exchange with 2 ranks, half as much as that with 4. Tensors on a device go through pinned host memory by its copy
    engines, and no multiprocessor works for them; that part never ran, for want of a GPU.

    `interface` says where each host listens (a name such as eth0, or an address): see `own_address`. ConfigError if
    this host has no such.
    """

    device_types = ("cpu", "cuda")
    _numbers = itertools.count()  # one for every ring opened, the same on all ranks

    def __init__(
        self,
        *,
        timeout_s: float = 600.0,
        interface: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"overlap: host_ring's timeout_s={timeout_s} waits for nobody. Set it above 0.")
        if interface is not None:
            own_address(interface, None, {})  # refuses at once one that is not there
        self._timeout_s, self._interface, self._clock = timeout_s, interface, clock
        self._ring: Ring | None = None
        self._roll: RollCall | None = None
        self._staging: dict[torch.device, Staging] = {}
        self._num_calls = 0
        self._failure: str | None = None
        self._close: Callable[[], object] = _nothing

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def open(self) -> None:
        if self.world_size == 1 or self._ring is not None:
            return
        store = dist.distributed_c10d.PrefixStore(f"lightning_intune/overlap/ring/{next(self._numbers)}", _store())
        self._roll = RollCall(store, rank=self.rank, world_size=self.world_size, timeout_s=self._timeout_s)
        self._num_calls = 0
        self._call(lambda: self._connect(store))

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        if self.world_size == 1:
            return sent
        return self._call(lambda: self._exchange(packed(sent), sizes_out, sizes_in))

    def close(self) -> None:
        """Close both connections, as happens when nobody holds this any more; `open`, on all ranks, makes new ones."""
        self._close()
        self._ring, self._close = None, _nothing

    def describe(self) -> str:
        needs = "host_ring: needs torch.distributed's store, and TCP between neighbouring ranks"
        num_devices = torch.cuda.device_count()
        devices = f"{num_devices} CUDA device(s), copies to which were never tried" if num_devices else "no CUDA device"
        found = f"{self.world_size} rank(s), {devices}"
        if self.world_size > 1:
            address = own_address(self._interface, _store(), os.environ)
            found = f"{found}, rank {self.rank} at {address.host} ({address.why})"
        return f"{needs}; found {found}"

    def _call(self, work: Callable[[], T]) -> T:
        """`work`, at a call of its own number; RuntimeError with the name of who is at fault if it fails."""
        if self._failure is not None:
            raise RuntimeError(self._failure)
        if self._roll is None:
            raise RuntimeError("overlap: host_ring is not open. Call open() on every rank first.")
        self._num_calls += 1
        try:
            self._roll.come(self._num_calls)
            return work()
        except Exception as error:
            self._failure = self._verdict(error, self._roll)
            raise RuntimeError(self._failure) from error
        except BaseException:
            self._failure = "overlap: host_ring was interrupted in an exchange, and cannot go on. Make a new one."
            raise
        finally:
            if self._failure is not None:
                self.close()

    def _connect(self, store: Any) -> None:
        address = own_address(self._interface, store, os.environ)
        meeting = Rendezvous(store, address, rank=self.rank, world_size=self.world_size, clock=self._clock)
        opened = ExitStack()
        self._close = opened.close
        ends = meeting.connect(opened, until_s=self._clock() + self._timeout_s)
        self._ring = Ring(*ends, rank=self.rank, world_size=self.world_size, clock=self._clock)
        self._close = weakref.finalize(self, self._ring.close)

    def _exchange(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        if sent.device.type == "cpu":
            received = sent.new_empty(sum(sizes_in))
            self._around(sent.view(torch.uint8), received.view(torch.uint8), sent, sizes_out, sizes_in)
            return received
        if sent.device not in self._staging:
            self._staging[sent.device] = Staging(sent.device)
        staging = self._staging[sent.device]
        there = staging.fetch(sent)
        room = staging.room(sum(sizes_in) * sent.element_size())
        self._around(there, room, sent, sizes_out, sizes_in)
        return staging.put(room, sent.dtype)

    def _around(
        self, there: Tensor, room: Tensor, sent: Tensor, sizes_out: Sequence[int], sizes_in: Sequence[int]
    ) -> None:
        """From bytes in the host's memory to bytes there."""
        assert self._ring is not None, "open comes first"
        if sum(sizes_out) != len(sent) or not len(sizes_out) == len(sizes_in) == self.world_size:
            raise ValueError(f"{len(sent)} entries do not go out as {sizes_out}, and come in as {sizes_in}")
        parcels = _parts(there, sizes_out, sent.element_size())
        rooms = _parts(room, sizes_in, sent.element_size())
        if len(parcels[self.rank]) != len(rooms[self.rank]):
            raise ValueError(f"rank {self.rank} gives itself {sizes_out[self.rank]} and gets {sizes_in[self.rank]}")
        self._ring.exchange(self._num_calls, parcels, rooms, until_s=self._clock() + self._timeout_s)
        rooms[self.rank][:] = parcels[self.rank]

    def _verdict(self, error: Exception, roll: RollCall) -> str:
        own = RingError(Kind.OWN, self.rank, self.rank, f"{type(error).__name__}: {error}")
        told = error if isinstance(error, RingError) else own
        try:
            known = roll.judge(self._num_calls, told, self.close)
        except Exception as lost:  # noqa: BLE001 - said
            known = f"the job's store is out of reach too ({lost}), so its host, mostly rank 0, has ended"
        return (
            f"overlap: rank {self.rank} could not go on exchanging with the others ({told}). What is known: {known}. "
            "See that rank's own log; raise timeout_s= if it was only slow, and let every rank take equally many steps."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _host_ring, (self._timeout_s, self._interface)  # connections are their process's own


def _host_ring(timeout_s: float, interface: str | None) -> HostRingTransport:
    return HostRingTransport(timeout_s=timeout_s, interface=interface)


def _store() -> Any:
    # Private by name, and what torch's own elastic and checkpoint code uses; there is no public way to it.
    return dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]


def _parts(flat: Tensor, sizes: Sequence[int], entry_bytes: int) -> list[memoryview]:
    array: Any = flat.numpy()  # typed as no buffer, which it is
    whole = memoryview(array)
    ends = list(itertools.accumulate((size * entry_bytes for size in sizes), initial=0))
    return [whole[begin:end] for begin, end in itertools.pairwise(ends)]


def _nothing() -> None:
    """There is nothing to close."""
