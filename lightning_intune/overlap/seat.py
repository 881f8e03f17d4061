"""Where each rank sits, and whether all of them can read the memory of each other's device."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from lightning_intune.overlap.needs import Need

BACKEND = "CUDA"
"""Of torch's symmetric memory: that by CUDA alone."""


@final
@dataclass(frozen=True, kw_only=True)
class Seat:
    """One rank's, as it tells the others."""

    host: str
    """Its name, and the namespace of its process numbers, by which torch's ranks send each other their memory."""
    folder: str
    """Where torch puts the sockets for that."""
    device: int | None
    """The number of its CUDA device, among all that the process sees. None: it has none."""
    reaches: tuple[int, ...]
    """The devices whose memory its own can read, itself included."""
    backend: str | None
    """What makes symmetric memory in its process. None: nothing does."""
    may_share: bool
    """Whether torch is told to let ranks share a device (TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES=1), for a trial."""


def own_seat(environ: Mapping[str, str]) -> Seat:
    """Where the calling thread sits, with its current device. Sets the backend if none is in use yet."""
    has_device = torch.cuda.is_available()
    device = torch.cuda.current_device() if has_device else None
    others = range(torch.cuda.device_count() if has_device else 0)
    folders = (environ[name] for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if name in environ)
    return Seat(
        host=f"{socket.gethostname()} {_namespace()}",
        folder=next(folders, "/tmp"),
        device=device,
        reaches=tuple(other for other in others if other == device or torch.cuda.can_device_access_peer(device, other)),
        backend=_backend(),
        may_share=environ.get("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES") == "1",
    )


def needs_of(seats: Sequence[Seat]) -> list[Need]:
    """What ranks on such seats, by rank, need to read each other's memory."""
    devices = [seat.device for seat in seats]
    has_own = len(set(devices)) == len(devices) or all(seat.may_share for seat in seats)
    sitting = [f"rank {rank} on {_name(seat.device)}" for rank, seat in enumerate(seats)]
    barred = sorted(
        f"{_name(seat.device)} to {_name(other)}"
        for seat in seats
        for other in {one for one in devices if one is not None}
        if other not in seat.reaches
    )
    wrong = [f"{seat.backend} on rank {rank}" for rank, seat in enumerate(seats) if seat.backend != BACKEND]
    return [
        _all_alike("all ranks on one host, in one process namespace", [seat.host for seat in seats]),
        _all_alike("one folder for torch's sockets (TMPDIR)", [seat.folder for seat in seats]),
        Need(
            what="a CUDA device of its own for each rank",
            is_met=None not in devices and has_own,
            found=f"{', '.join(sitting)} (each process must see all devices, and set its own)",
        ),
        Need(
            what="access from each device to the others' memory",
            is_met=not barred,
            found=f"none from {', '.join(barred)}" if barred else "there",
        ),
        Need(
            what=f"torch's symmetric memory with backend {BACKEND}",
            is_met=not wrong,
            found=", ".join(wrong) or BACKEND,
        ),
    ]


def _all_alike(what: str, found: list[str]) -> Need:
    different = sorted(set(found))
    return Need(what=what, is_met=len(different) == 1, found=", ".join(different))


def _name(device: int | None) -> str:
    return "no device" if device is None else f"cuda:{device}"


def _namespace() -> str:
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.is_symlink() else ""


def _backend() -> str | None:
    from torch.distributed import _symmetric_memory as symmetric  # alpha in torch 2.13, and without a public name

    device: Any = torch.device("cuda")
    found = symmetric.get_backend(device)
    # One that is in use cannot be changed, and one that was torch's choice from the start cannot be named again.
    if found not in (None, BACKEND):
        try:
            symmetric.set_backend(BACKEND)
        except RuntimeError:
            return found  # and so it is told to all ranks
    return symmetric.get_backend(device)
