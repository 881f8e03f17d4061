"""What a transport cannot do without, and what of it is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch.cuda import nccl

from lightning_intune.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Host:
    """What this process finds of what transports need."""

    torch_version: str
    has_distributed: bool
    num_devices: int
    """CUDA devices that it sees."""
    nccl_version: str | None
    """None: this torch has no NCCL."""
    has_zero_cta: bool
    """Whether the NCCL that torch was built with has the policy NCCL_CTA_POLICY_ZERO, as 2.28 has."""
    symmetric_backend: str | None
    """What makes symmetric memory on CUDA devices in this torch. None: nothing does."""


def look() -> Host:
    """What is here."""
    has_distributed = dist.is_available()
    has_nccl = has_distributed and dist.is_nccl_available()
    # Only a torch with NCCL has the class, and only one with NCCL 2.28 or later the policy.
    group: Any = getattr(dist, "ProcessGroupNCCL", None) if has_nccl else None
    return Host(
        torch_version=torch.__version__,
        has_distributed=has_distributed,
        num_devices=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        nccl_version=".".join(map(str, nccl.version())) if has_nccl else None,
        has_zero_cta=hasattr(group, "NCCL_CTA_POLICY_ZERO"),
        symmetric_backend=_symmetric_backend() if has_distributed else None,
    )


def _symmetric_backend() -> str | None:
    from torch.distributed import _symmetric_memory as symmetric  # alpha in torch 2.13, and without a public name

    return symmetric.get_backend(torch.device("cuda"))


@final
@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing a transport cannot do without."""

    what: str
    is_met: bool
    found: str


def need_devices(host: Host, at_least: int) -> Need:
    """So many CUDA devices."""
    what = "a CUDA device" if at_least == 1 else f"{at_least} CUDA devices on this node"
    return Need(
        what=what, is_met=host.num_devices >= at_least, found=f"{host.num_devices} (torch {host.torch_version})"
    )


def need_distributed(host: Host) -> Need:
    """torch.distributed, for ranks to find each other."""
    found = "in this torch" if host.has_distributed else "not in this torch"
    return Need(what="torch.distributed", is_met=host.has_distributed, found=found)


def refuse_unmet(name: str, needs: Sequence[Need]) -> None:
    """ConfigError, with all that is needed and what was found, where something is not met."""
    if all(need.is_met for need in needs):
        return
    told = "; ".join(f"{need.what}: {need.found}" for need in needs)
    unmet = ", ".join(need.what for need in needs if not need.is_met)
    raise ConfigError(
        f"overlap: transport {name!r} cannot run here, for want of: {unmet}. It needs, and found: {told}. Use "
        "make_transport('gloo') or make_transport('host_ring'), which carry tables in the host's memory."
    )
