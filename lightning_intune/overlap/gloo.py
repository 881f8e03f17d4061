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

    With a link every exchange takes longer, by what the link would take for its bytes: `sleep` does that, without a
    CPU, once all ranks have come. A rank that dies, or does not come within `timeout_s`, ends all the others with a
    RuntimeError that names it.
    """

    device_types = ("cpu",)

    def __init__(
        self,
        *,
        timeout_s: float = 600.0,
        link: Link | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel = GlooChannel(timeout_s, owner="overlap")
        self._link, self._sleep = link, sleep

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
        received = self._channel.all_to_all(sent, sizes_out, sizes_in)
        if self._link is not None:
            others_out = sum(sizes_out) - sizes_out[self.rank]
            others_in = sum(sizes_in) - sizes_in[self.rank]
            self._sleep(self._link.seconds(max(others_out, others_in) * sent.element_size()))
        return received

    def describe(self) -> str:
        shaped = "" if self._link is None else f", SHAPED to {self._link}"
        return f"gloo: needs torch.distributed on CPUs; found {self.world_size} rank(s){shaped}"
