"""How rows, gradients and ids cross from rank to rank."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.copy_engine import CopyEngineTransport
from lightning_intune.overlap.gloo import GlooTransport
from lightning_intune.overlap.host_ring import HostRingTransport
from lightning_intune.overlap.nccl import NcclTransport
from lightning_intune.overlap.needs import Host, Need, look, need_devices, need_distributed, refuse_unmet

_log = logging.getLogger("lightning_intune")


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

    @property
    def device_types(self) -> tuple[str, ...]:
        """Of the tensors that it carries: "cpu", "cuda"."""
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


def make_transport(name: str, *, host: Host | None = None, **settings: Any) -> Transport:
    """The transport called so: `gloo`, `host_ring`, `nccl` or `copy_engine`; each class says which `settings` it has.

    ConfigError, with what it needs and what was found, for one that cannot run here. None stands in for another.
    `host`: what to take as found; by default, what `look` finds.

    >>> make_transport("gloo", timeout_s=60.0).describe()
    'gloo: needs torch.distributed on CPUs; found 1 rank(s)'
    """
    if name not in _KINDS:
        raise ConfigError(f"overlap: there is no transport {name!r}. Use one of {', '.join(map(repr, _KINDS))}.")
    kind = _KINDS[name]
    refuse_unmet(name, kind.needs(look() if host is None else host))
    return kind.make(**settings)


def start(transport: Transport, device_type: str) -> Transport:
    """`transport`, once rank 0 has logged what it says of itself.

    ConfigError if it carries no tensors on devices of that type.
    """
    if device_type not in transport.device_types:
        raise ConfigError(
            f"overlap: the tables are on '{device_type}', and this transport carries tensors on "
            f"{' and '.join(transport.device_types)} only ({transport.describe()}). Use make_transport('host_ring') or "
            "make_transport('gloo')."
        )
    if transport.rank == 0:
        _log.info("overlap: %s", transport.describe())
    return transport


@final
@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A transport, and what it needs to be made."""

    make: Callable[..., Transport]
    needs: Callable[[Host], list[Need]]


def _needs_of_nccl(host: Host) -> list[Need]:
    nccl = Need(what="NCCL", is_met=host.nccl_version is not None, found=host.nccl_version or "none in this torch")
    return [need_distributed(host), need_devices(host, 1), nccl]


def _needs_of_copy_engine(host: Host) -> list[Need]:
    backend = host.symmetric_backend
    symmetric = Need(
        what="torch's symmetric memory", is_met=backend is not None, found=f"{backend or 'no'} backend for CUDA devices"
    )
    return [need_distributed(host), need_devices(host, 2), symmetric]


_KINDS = {
    "gloo": _Kind(make=GlooTransport, needs=lambda host: [need_distributed(host)]),
    "host_ring": _Kind(make=HostRingTransport, needs=lambda host: [need_distributed(host)]),
    "nccl": _Kind(make=NcclTransport, needs=_needs_of_nccl),
    "copy_engine": _Kind(make=CopyEngineTransport, needs=_needs_of_copy_engine),
}
