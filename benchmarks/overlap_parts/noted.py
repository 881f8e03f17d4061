"""A transport from the outside: when its messages begin, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from torch import Tensor

from lightning_intune.overlap.transport import Transport

Ended = Callable[[float, int], None]
"""Called at a message's end, with when it began, in seconds, and the bytes that left this rank or came, the more."""


@final
class Noted:
    """`inner`, whose messages are noted."""

    def __init__(self, inner: Transport, ended: Ended) -> None:
        self._inner, self._ended = inner, ended

    @property
    def rank(self) -> int:
        return self._inner.rank

    @property
    def world_size(self) -> int:
        return self._inner.world_size

    @property
    def device_types(self) -> tuple[str, ...]:
        return self._inner.device_types

    def open(self) -> None:
        self._inner.open()

    def describe(self) -> str:
        return self._inner.describe()

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        begun_s = time.perf_counter()
        received = self._inner.all_to_all(sent, sizes_out, sizes_in)
        others_out, others_in = (sum(sizes) - sizes[self.rank] for sizes in (sizes_out, sizes_in))
        self._ended(begun_s, max(others_out, others_in) * sent.element_size())
        return received
