"""The transport for CUDA tensors of ranks on one host that read each other's memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_intune.balance.channel import GlooChannel
from lightning_intune.overlap.device_window import DeviceWindow
from lightning_intune.overlap.needs import Host, look, refuse_unmet
from lightning_intune.overlap.pick_up import PickUp
from lightning_intune.overlap.seat import needs_of, own_seat
from lightning_intune.overlap.staging import packed


@final
class CopyEngineTransport:
    """CUDA tensors from device to device of one host, by the devices' copy engines.

    Written against torch 2.13's interface: its order and sizes are proved with a stand-in for device memory, and its
    copies were never run, as no GPU was at hand.

    Each rank lays its parcels out in symmetric memory, and the others copy theirs from there (`PickUp`). The ranks meet
    twice per exchange over gloo, and this thread waits for its copies in between. Torch's own barrier in symmetric
    memory would save that; but it is a kernel that turns on a multiprocessor until all have come, for ever by default,
    and with a timeout it ends in a trap, behind which the process can use its device no more. Over gloo a rank that
    has died, or does not come within `timeout_s`, is named, and devices never wait for each other. Only while memory
    grows (`DeviceWindow.share`) do the ranks meet in torch's code, with its timeouts.

    CPU tensors, as the tables of this package are, it refuses. Source: torch's `distributed/_symmetric_memory`, whose
    `_low_contention_all_gather` copies likewise.
    """

    device_types = ("cuda",)

    def __init__(self, *, timeout_s: float = 600.0, host: Host | None = None) -> None:
        self._control = GlooChannel(timeout_s, owner="overlap")
        self._timeout_s, self._host = timeout_s, look() if host is None else host
        self._pick_up: PickUp | None = None
        self._stream: Any = None
        self._device = torch.device("cuda")
        self._failure: str | None = None

    @property
    def rank(self) -> int:
        return self._control.rank

    @property
    def world_size(self) -> int:
        return self._control.world_size

    def open(self) -> None:
        """ConfigError, the same on all ranks, if they do not sit so that they can read each other's memory.

        A rank's device is the one that is current in the thread that calls.
        """
        if self._pick_up is not None or self.world_size == 1:
            return
        self._control.open()
        refuse_unmet("copy_engine", needs_of(self._control.gather(own_seat(os.environ))))
        # One dropped before may have copies under way on any rank, from memory that torch may give out anew.
        torch.cuda.synchronize()
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self._timeout_s))
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device)
        self._pick_up = PickUp(self._control, DeviceWindow(self._device, group, self._stream))

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        if sent.device.type not in self.device_types:
            raise RuntimeError(
                f"overlap: copy_engine on rank {self.rank} was given a tensor on '{sent.device}', and carries none but "
                "CUDA tensors. Use host_ring or gloo for tables in the host's memory."
            )
        if self.world_size == 1:
            return sent
        if self._failure is not None:
            raise RuntimeError(self._failure)
        if self._pick_up is None:
            raise RuntimeError("overlap: copy_engine is not open. Call open() on every rank first.")
        if sent.device != self._device:
            raise RuntimeError(
                f"overlap: copy_engine on rank {self.rank} was opened on '{self._device}', and was given a tensor on "
                f"'{sent.device}'. Set the rank's device before the first step."
            )
        try:
            flat, received = packed(sent), sent.new_empty(sum(sizes_in))
            with self._aside():
                self._pick_up.exchange(flat, received, sizes_out, sizes_in)
        except BaseException as error:
            self._failure = (
                f"overlap: copy_engine on rank {self.rank} failed before ({type(error).__name__}: {error}), and cannot "
                "go on. Make a new one."
            )
            raise
        return received

    def describe(self) -> str:
        return (
            "copy_engine: needs a CUDA device of its own for each rank, all on one host with access to each other's "
            f"memory, and torch's symmetric memory; found {self.world_size} rank(s), {self._host.num_devices} CUDA "
            f"device(s), symmetric memory with backend {self._host.symmetric_backend}. Never tried on a GPU"
        )

    @contextmanager
    def _aside(self) -> Generator[None]:
        """On a stream of its own, behind the caller's, which goes on behind it, however this ends.

        So all copies lie between two points of the caller's stream. Memory that it gives back is not used again before
        its copies have ended, and none has to be marked as used elsewhere (`record_stream`).
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def __reduce__(self) -> tuple[Any, ...]:
        # Streams and groups are their process's own.
        return functools.partial(CopyEngineTransport, timeout_s=self._timeout_s, host=self._host), ()
