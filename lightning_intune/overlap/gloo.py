"""The transport for CPU tensors over torch.distributed's gloo."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from torch import Tensor

from lightning_intune.balance.channel import GlooChannel
from lightning_intune.overlap.link import Link


@final
class GlooTransport:
    """CPU tensors over gloo, on a group of its own; `link` makes it as slow as a link it stands for.

    With a link an exchange ends no earlier than the link would let it: `sleep` fills the rest, without a CPU. A rank
    that dies, or does not come within `timeout_s`, ends all the others with a RuntimeError that names it.
    """

    device_types = ("cpu",)

    def __init__(
        self,
        *,
        timeout_s: float = 600.0,
        link: Link | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel = GlooChannel(timeout_s, owner="overlap")
        self._link, self._clock, self._sleep = link, clock, sleep

    @property
    def rank(self) -> int:
        return self._channel.rank

    @property
    def world_size(self) -> int:
        return self._channel.world_size

    def open(self) -> None:
        if self.world_size > 1:
            self._channel.open()

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        if self.world_size == 1:
            return sent
        begun_s = self._clock()
        received = self._channel.all_to_all(sent, sizes_out, sizes_in)
        if self._link is not None:
            others_out = sum(sizes_out) - sizes_out[self.rank]
            others_in = sum(sizes_in) - sizes_in[self.rank]
            takes_s = self._link.seconds(max(others_out, others_in) * sent.element_size())
            left_s = takes_s - (self._clock() - begun_s)
            if left_s > 0:
                self._sleep(left_s)
        return received

    def describe(self) -> str:
        shaped = "" if self._link is None else f", SHAPED to {self._link}"
        return f"gloo: needs torch.distributed on CPUs; found {self.world_size} rank(s){shaped}"
