"""Tensors as bytes, and a device's in pinned host memory and back, by copies alone."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor


@final
class Staging:
    """Two buffers of pinned host memory, for what goes out and what comes in; they grow and are used again.

    Copies run on a stream of their own, by the device's copy engines: no multiprocessor works for them. The thread
    that calls waits for the first copy; the second is awaited by its device stream. Written against torch 2.13's
    interface, never run: no GPU was at hand.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # As torch types them loosely, and CPU builds have no more than the names.
        self._stream: Any = torch.cuda.Stream(device)
        self._done: Any = torch.cuda.Event()
        self._out = self._in = torch.empty(0, dtype=torch.uint8)

    def fetch(self, sent: Tensor) -> Tensor:
        """The bytes [n] of `sent`, contiguous and on the device, in pinned memory until the next call."""
        flat = sent.view(torch.uint8)
        if len(self._out) < len(flat):
            self._out = _pinned(len(flat))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._out[: len(flat)].copy_(flat, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        return self._out[: len(flat)]

    def room(self, num_bytes: int) -> Tensor:
        """Pinned memory for what comes, once the last copy from it has ended: it lay before the one of `fetch`."""
        if len(self._in) < num_bytes:
            self._in = _pinned(num_bytes)
        return self._in[:num_bytes]

    def put(self, room: Tensor, dtype: torch.dtype) -> Tensor:
        """What has come into `room`, on the device; ready for the stream that is current in the calling thread."""
        received = torch.empty(len(room), dtype=torch.uint8, device=self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)  # the memory may be in use there until now
        with torch.cuda.stream(self._stream):
            received.copy_(room, non_blocking=True)
        current.wait_stream(self._stream)
        return received.view(dtype)


def packed(values: Tensor) -> Tensor:
    """`values` [n] with its entries side by side, as to be seen as bytes they must lie.

    `contiguous` leaves a single entry whatever stride it has.

    >>> packed(torch.arange(2)[::2]).view(torch.uint8).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0]
    """
    return values.detach().contiguous().as_strided((len(values),), (1,))


def _pinned(num_bytes: int) -> Tensor:
    """Half as large again, so that growing batches do not pin anew every time."""
    return torch.empty(num_bytes + num_bytes // 2, dtype=torch.uint8, pin_memory=True)
