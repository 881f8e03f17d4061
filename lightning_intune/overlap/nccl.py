"""The transport for CUDA tensors over NCCL, by copy engines where its library can."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_intune.balance.channel import GlooChannel
from lightning_intune.overlap.needs import Host, look
from lightning_intune.overlap.staging import packed


@final
class NcclTransport:
    """CUDA tensors over NCCL, on a group of its own.

    Written against torch 2.13's interface, never run: no GPU was at hand.

    With the policy NCCL_CTA_POLICY_ZERO, which it asks for where NCCL has it (2.28), NCCL leaves exchanges within a
    node to copy engines if parcels are of one size, in buffers registered as symmetric memory, and off the default
    stream. So parcels are padded to the largest of any rank, which the ranks tell each other over gloo beforehand;
    there a rank that has died, or does not come within `timeout_s`, is named. One that dies within NCCL's own call is
    not: torch's watchdog then ends the process. CPU tensors, as the tables of this package are, it refuses.

    torch's symmetric memory has one backend per process, and this sets it to NCCL's. Source: torch's page "PyTorch
    Symmetric Memory", "Copy Engine Collectives"; NCCL's user guide, "Zero-CTA Optimization".
    """

    device_types = ("cuda",)

    def __init__(self, *, timeout_s: float = 600.0, host: Host | None = None) -> None:
        self._control = GlooChannel(timeout_s, owner="overlap")
        self._timeout_s, self._host = timeout_s, look() if host is None else host
        self._group: Any = None
        self._stream: Any = None
        self._windows: list[Tensor] = []
        self._outgrown: list[Tensor] = []
        """Kept: to free memory that ranks have mapped may wait for the device, and so for ranks that wait for this."""

    @property
    def rank(self) -> int:
        return self._control.rank

    @property
    def world_size(self) -> int:
        return self._control.world_size

    def open(self) -> None:
        if self._group is not None or not dist.is_initialized():
            return
        from torch.distributed import _symmetric_memory as symmetric  # alpha in torch 2.13, and without a public name

        symmetric.set_backend("NCCL")
        self._control.open()
        device = torch.device("cuda", torch.cuda.current_device())
        options = _options(self._host)
        self._group = dist.new_group(
            backend="nccl", timeout=timedelta(seconds=self._timeout_s), pg_options=options, device_id=device
        )
        self._stream = torch.cuda.Stream(device)

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        if sent.device.type not in self.device_types:
            raise RuntimeError(
                f"overlap: nccl on rank {self.rank} was given a tensor on '{sent.device}', and carries none but CUDA "
                "tensors. Use host_ring or gloo for tables in the host's memory."
            )
        if self._group is None:
            if self.world_size == 1:
                return sent
            raise RuntimeError("overlap: nccl is not open. Call open() on every rank first.")
        entry_bytes, ranks = sent.element_size(), range(self.world_size)
        parcel_bytes = self._largest(max(*sizes_out, *sizes_in) * entry_bytes)
        out, coming = self._windows_for(parcel_bytes, sent.device)
        received = sent.new_empty(sum(sizes_in))
        parts, rooms = packed(sent).split(sizes_out), received.split(sizes_in)
        current = torch.cuda.current_stream(sent.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for rank in ranks:
                out[rank, : sizes_out[rank] * entry_bytes].copy_(parts[rank].view(torch.uint8))
            dist.all_to_all_single(coming, out, group=self._group)
            for rank in ranks:
                rooms[rank].view(torch.uint8).copy_(coming[rank, : sizes_in[rank] * entry_bytes])
        current.wait_stream(self._stream)
        return received

    def describe(self) -> str:
        policy = "asks for it" if self._host.has_zero_cta else "goes without: its exchanges take multiprocessors"
        return (
            "nccl: needs a CUDA device for each rank, NCCL, and NCCL_CTA_POLICY_ZERO to spare multiprocessors; found "
            f"{self.world_size} rank(s), {self._host.num_devices} CUDA device(s), NCCL {self._host.nccl_version}, and "
            f"{policy}. Never tried on a GPU"
        )

    def _largest(self, num_bytes: int) -> int:
        """The largest that any rank names; RuntimeError with the name of one that does not come."""
        ones = [1] * self.world_size
        return int(self._control.all_to_all(torch.tensor([num_bytes] * self.world_size), ones, ones).max())

    def _windows_for(self, parcel_bytes: int, device: torch.device) -> list[Tensor]:
        """Two registered buffers [world, at least parcel_bytes], for what goes out and what comes in.

        Anew for larger parcels, on all ranks at once, as registering is a collective.
        """
        if not self._windows or self._windows[0].shape[1] < parcel_bytes:
            from torch.distributed import _symmetric_memory as symmetric

            self._outgrown += self._windows
            shape = (self.world_size, max(1, parcel_bytes + parcel_bytes // 2))
            self._windows = [symmetric.empty(*shape, dtype=torch.uint8, device=device) for _ in range(2)]
            for window in self._windows:
                symmetric.rendezvous(window, self._group)
        return self._windows


def _options(host: Host) -> Any:
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    if host.has_zero_cta:
        options.config.cta_policy = nccl.NCCL_CTA_POLICY_ZERO
    return options
