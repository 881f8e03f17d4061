"""A window in device memory, by torch's symmetric memory."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor


@final
class DeviceWindow:
    """Rooms on one device for each rank of `group`; copies run on `stream`, which must be current in every call.

    Written against torch 2.13's interface, never run: no GPU was at hand. As read in its source: a peer's room is
    mapped into this process as memory of its own device, so that `copy_` is one cudaMemcpyAsync, which the device's
    copy engines carry out if it comes from another device. Within one device, as into one's own room, it may take
    multiprocessors.

    Rooms that were outgrown are kept. To free one torch waits for all that runs on the device, which may itself be
    waiting for a rank that waits for this one.
    """

    def __init__(self, device: torch.device, group: Any, stream: Any) -> None:
        self._device, self._group, self._stream = device, group, stream
        self._made: list[Tensor] = []
        self._handles: list[Any] = []

    def make(self, num_bytes: int) -> None:
        from torch.distributed import _symmetric_memory as symmetric  # alpha in torch 2.13, and without a public name

        self._made.append(symmetric.empty(num_bytes, dtype=torch.uint8, device=self._device))

    def share(self) -> None:
        """RuntimeError if torch shares other memory than was made.

        A rank that dies in here leaves the others waiting, and holding Python's lock: until the store's timeout, or
        without one while torch passes the handles of the memory on.
        """
        from torch.distributed import _symmetric_memory as symmetric

        made = self._made[-1]
        handle: Any = symmetric.rendezvous(made, self._group)
        if handle is None or handle.get_buffer(handle.rank, (1,), torch.uint8, 0).data_ptr() != made.data_ptr():
            raise RuntimeError("overlap: torch's symmetric memory shares other memory than it was given")
        self._handles.append(handle)

    def view(self, rank: int, begin: int, num_bytes: int) -> Tensor:
        return self._handles[-1].get_buffer(rank, (num_bytes,), torch.uint8, begin)

    def copy(self, to: Tensor, source: Tensor) -> None:
        to.copy_(source, non_blocking=True)

    def settle(self) -> None:
        self._stream.synchronize()
