"""How rows, gradients and ids cross from rank to rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from lightning_intune.balance.channel import GlooChannel
from lightning_intune.errors import ConfigError


class Transport(Protocol):
    """What the exchange asks of a transport. Errors are RuntimeErrors that name the rank at fault."""

    @property
    def rank(self) -> int:
        """Which one it is."""
        ...

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        ...

    def open(self) -> None:
        """Get ready; a collective of all ranks. Again does nothing."""
        ...

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        """The first `sizes_out[0]` entries of `sent` [n] go to rank 0, and so on; what comes is laid out likewise.

        Every rank calls it equally often, in the same order, from one thread at a time.
        """
        ...

    def describe(self) -> str:
        """What it needs, what it found here, and whether its speed is shaped: one line for the start-up log."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Link:
    """A slower link than there is, for measurements on one machine. Figures made with one must say so."""

    delay_s: float = 0.0
    """Of every exchange."""
    bytes_per_s: float = float("inf")
    """Of a rank, in each direction."""

    def __post_init__(self) -> None:
        if not (self.delay_s >= 0 and self.bytes_per_s > 0):
            raise ConfigError(
                f"Link: delay_s={self.delay_s} and bytes_per_s={self.bytes_per_s} describe no link. Give a delay of 0 "
                "or more, and more than 0 bytes per second."
            )

    def seconds(self, num_bytes: int) -> float:
        """What an exchange takes in which a rank sends, or gets, at most so many bytes."""
        return self.delay_s + num_bytes / self.bytes_per_s


@final
class GlooTransport:
    """CPU tensors over gloo, on a group of its own; `link` makes it as slow as a link it stands for.

    With a link an exchange ends no earlier than the link would let it: `sleep` fills the rest, without a CPU. A rank
    that dies, or does not come within `timeout_s`, ends all the others with a RuntimeError that names it.
    """

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


@final
@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing a transport cannot do without."""

    what: str
    is_met: bool
    found: str


def make_transport(name: str, **settings: Any) -> Transport:
    """The transport called so: `gloo` (see `GlooTransport` for `settings`), `host_ring`, `nccl` or `copy_engine`.

    ConfigError, with what it needs and what was found, for one that cannot run here. None stands in for another.
    """
    if name == "gloo":
        return GlooTransport(**settings)
    if name not in _OTHERS:
        names = ["gloo", *_OTHERS]
        raise ConfigError(f"overlap: there is no transport {name!r}. Use one of {', '.join(map(repr, names))}.")
    needs = [*_OTHERS[name](), _IS_BUILT]
    told = "; ".join(f"{need.what}: {need.found}" for need in needs)
    unmet = ", ".join(need.what for need in needs if not need.is_met)
    raise ConfigError(
        f"overlap: transport {name!r} cannot run here, for want of: {unmet}. It needs, and found: {told}. Use "
        "make_transport('gloo'), whose tables lie in the host's memory."
    )


_IS_BUILT = Need(what="an implementation", is_met=False, found="none in this version; only gloo has been built")


def _cuda() -> Need:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Need(what="a CUDA device", is_met=count > 0, found=f"{count} (torch {torch.__version__})")


def _host_ring() -> list[Need]:
    return [_cuda()]


def _nccl() -> list[Need]:
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    version = "in this torch" if has_nccl else "none in this torch"
    return [_cuda(), Need(what="NCCL", is_met=has_nccl, found=version)]


def _copy_engine() -> list[Need]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    peers = Need(what="a second device on this node to copy to", is_met=count > 1, found=str(count))
    return [_cuda(), peers]


_OTHERS: dict[str, Callable[[], list[Need]]] = {
    "host_ring": _host_ring,
    "nccl": _nccl,
    "copy_engine": _copy_engine,
}
