"""Where ranks must sit to read each other's memory, and what they are told if they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed import _symmetric_memory as symmetric

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.needs import refuse_unmet
from lightning_intune.overlap.seat import Seat, needs_of, own_seat


def seat(**found: Any) -> Seat:
    settings: dict[str, Any] = {
        "host": "a pid:[1]",
        "folder": "/tmp",
        "device": 0,
        "reaches": (0, 1),
        "backend": "CUDA",
        "may_share": False,
    }
    return Seat(**(settings | found))


def test_ranks_on_devices_of_one_host_that_reach_each_other_are_not_refused() -> None:
    refuse_unmet("copy_engine", needs_of([seat(), seat(device=1)]))
    refuse_unmet("copy_engine", needs_of([seat(may_share=True)] * 2))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"host": "b pid:[1]"}, r"all ranks on one host.*\. It needs.*process namespace: a pid:\[1\], b pid:\[1\];"),
        ({"folder": "/scratch"}, r"one folder for torch's sockets.*\. It needs.*\(TMPDIR\): /scratch, /tmp;"),
        ({"device": 0}, r"a CUDA device of its own.*\. It needs.*rank 0 on cuda:0, rank 1 on cuda:0 \(each process"),
        ({"device": 0, "may_share": True}, "a CUDA device of its own"),  # torch must be told so on all
        ({"device": None}, r"a CUDA device of its own.*\. It needs.*rank 1 on no device"),
        ({"reaches": (1,)}, r"access from each device.*\. It needs.*none from cuda:1 to cuda:0;"),
        ({"backend": "NCCL"}, r"torch's symmetric memory with backend CUDA\. It needs.*backend CUDA: NCCL on rank 1"),
    ],
)
def test_ranks_that_cannot_read_each_others_memory_are_told_the_reason(found: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"'copy_engine' cannot run here, for want of: {told}"):
        refuse_unmet("copy_engine", needs_of([seat(), seat(**({"device": 1} | found))]))


def test_every_pair_of_devices_must_reach_each_other_both_ways() -> None:
    seats = [seat(reaches=(0, 1)), seat(device=1, reaches=(0, 1, 2)), seat(device=2, reaches=(1, 2))]
    with pytest.raises(ConfigError, match="memory: none from cuda:0 to cuda:2, cuda:2 to cuda:0;"):
        refuse_unmet("copy_engine", needs_of(seats))


@pytest.mark.parametrize(
    ("backend", "can_change", "told"),
    [(None, True, None), ("CUDA", False, "CUDA"), ("NVSHMEM", True, "CUDA"), ("NCCL", False, "NCCL")],
)
def test_a_seat_is_what_this_process_finds(
    monkeypatch: pytest.MonkeyPatch, backend: str | None, can_change: bool, told: str | None
) -> None:
    backends = [backend]

    def change(name: str) -> None:
        if not can_change:
            raise RuntimeError("Backend can not be changed after use.")
        backends.append(name)

    monkeypatch.setattr(symmetric, "get_backend", lambda _: backends[-1])
    monkeypatch.setattr(symmetric, "set_backend", change)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda mine, other: (mine, other) == (2, 1))
    found = own_seat({"TMP": "/other", "TMPDIR": "/mine"})
    assert (found.device, found.reaches, found.folder, found.may_share) == (2, (1, 2), "/mine", False)
    assert found.backend == told
    assert own_seat({"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"}).may_share
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    nowhere = own_seat({})
    assert (nowhere.device, nowhere.reaches, nowhere.folder, nowhere.host) == (None, (), "/tmp", found.host)
