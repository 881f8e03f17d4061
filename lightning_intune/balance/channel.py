"""The exchange's line to the other ranks: a gloo group of its own, and a name for the rank that does not come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar, final

import numpy as np
import torch
import torch.distributed as dist

from lightning_intune.balance.roll_call import RollCall
from lightning_intune.errors import ConfigError
from lightning_intune.flow.communicator import Communicator

T = TypeVar("T")


class Channel(Communicator, Protocol):
    """What `BalancedExchange` asks of the other ranks. Errors are RuntimeErrors that name the rank at fault."""

    def deal(self, parcels: list[bytes]) -> list[bytes]:
        """`parcels[r]` goes to rank r; what comes back is by sender. Called as `gather` is."""
        ...


@final
class GlooChannel:
    """Over all ranks of `torch.distributed` where that is initialized; alone otherwise.

    Before every collective a rank leaves a mark in the default group's store (some 0.1 ms). Whoever finds a
    collective broken or late reads there which ranks had not come (`RollCall`). `timeout_s` is how long one waits
    for them.
    """

    _numbers = itertools.count()  # one for every channel opened, the same on all ranks

    def __init__(self, timeout_s: float = 600.0, *, owner: str = "BalancedExchange") -> None:
        if not timeout_s > 0:
            raise ConfigError(f"{owner}: timeout_s={timeout_s} waits for nobody. Set it above 0.")
        self._timeout_s, self._owner = timeout_s, owner
        self._group: Any = None
        self._roll_call: RollCall | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

    @property
    def world_size(self) -> int:
        return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

    def open(self) -> None:
        if self._group is not None:
            return
        # Private by name, and what torch's own elastic and checkpoint code uses; there is no public way to it.
        store = dist.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        own = dist.distributed_c10d.PrefixStore(f"lightning_intune/balance/{next(self._numbers)}", store)
        self._roll_call = RollCall(own, rank=self.rank, world_size=self.world_size, timeout_s=self._timeout_s)
        self._group = self._call(lambda: dist.new_group(backend="gloo", timeout=timedelta(seconds=self._timeout_s)))

    def gather(self, message: Any) -> list[Any]:
        messages: list[Any] = [None] * self.world_size
        self._call(lambda: dist.all_gather_object(messages, message, group=self._group))
        return messages

    def deal(self, parcels: list[bytes]) -> list[bytes]:
        sizes = torch.tensor([len(parcel) for parcel in parcels])
        sizes_in = torch.empty_like(sizes)
        self._call(lambda: dist.all_to_all_single(sizes_in, sizes, group=self._group))
        out = torch.from_numpy(np.frombuffer(b"".join([*parcels, b"\0"]), np.uint8).copy())[:-1]
        received = torch.empty(int(sizes_in.sum()), dtype=torch.uint8)
        splits = sizes_in.tolist(), sizes.tolist()
        self._call(lambda: dist.all_to_all_single(received, out, *splits, group=self._group))
        return [part.numpy().tobytes() for part in received.split(splits[0])]

    def all_to_all(self, sent: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
        """The first `sizes_out[0]` entries of `sent` [n] go to rank 0, and so on; what comes is laid out likewise."""
        received = sent.new_empty(sum(sizes_in))
        self._call(lambda: dist.all_to_all_single(received, sent, sizes_in, sizes_out, group=self._group))
        return received

    def _call(self, collective: Callable[[], T]) -> T:
        assert self._roll_call is not None, "open comes first"
        begun_s = time.monotonic()
        try:
            self._roll_call.come()
            return collective()
        except Exception as error:
            raise RuntimeError(self._verdict(error, self._roll_call, time.monotonic() - begun_s)) from error

    def _verdict(self, error: Exception, roll_call: RollCall, since_s: float) -> str:
        """Who had not come, as far as the store can tell."""
        head = f"{self._owner}: rank {self.rank} could not go on exchanging with the others ({_first_line(error)})."
        try:
            text = roll_call.at_fault(since_s)
        except Exception as lost:  # noqa: BLE001 - said below
            text = f"the job's store is out of reach too ({_first_line(lost)}), so its host, mostly rank 0, has ended"
        return (
            f"{head} What is known: {text}. See that rank's own log; raise timeout_s= if it was only slow, and let "
            "every rank take equally many steps."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _channel, (self._timeout_s, self._owner)  # a group is its process's own


def _channel(timeout_s: float, owner: str) -> GlooChannel:
    return GlooChannel(timeout_s, owner=owner)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
