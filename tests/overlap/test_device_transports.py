"""On a machine with a CUDA device; skipped elsewhere, and not run yet on any: no GPU was at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_intune.overlap.nccl import NcclTransport
from lightning_intune.overlap.needs import look
from lightning_intune.overlap.staging import Staging, packed
from tests.started import told_by

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_comes_back_through_pinned_memory_as_it_went(dtype: torch.dtype) -> None:
    device = torch.device("cuda", 0)
    staging = Staging(device)
    for size in (0, 1, 1000, 500_000, 3):
        sent = torch.randint(0, 2, (2 * size,), device=device).to(dtype)[::2]
        fetched = staging.fetch(packed(sent))
        assert fetched.is_pinned() or not size
        room = staging.room(fetched.numel())
        room.copy_(fetched)
        got = staging.put(room, dtype)
        assert got.device == device
        assert torch.equal(got, sent)


@pytest.mark.gpu
@pytest.mark.timeout(200)
def test_ranks_that_share_a_device_exchange_its_tensors_around_the_ring() -> None:
    told = told_by("tests.overlap.ring_ranks", "cuda:2")
    assert [told[f"cuda:2/{rank}"]["differ"] for rank in range(2)] == [[], []]


@pytest.mark.gpu
def test_nccl_alone_on_its_device_gives_back_what_it_gets(tmp_path: Path) -> None:
    assert look().nccl_version is not None
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        transport = NcclTransport(timeout_s=60.0)
        transport.open()
        for size in (0, 1, 1000, 500_000, 3):
            sent = torch.arange(2 * size, device="cuda").float()[::2]
            got = transport.all_to_all(sent, [size], [size])
            assert torch.equal(got, sent)
            assert got.data_ptr() != sent.data_ptr() or not size
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.timeout(200)
def test_ranks_with_a_device_each_copy_from_one_to_the_other_what_gloo_brings() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device, and copy_engine needs two")
    told = told_by("tests.overlap.ring_ranks", "copy:2", "leaves:2")
    for rank in range(2):
        assert told[f"copy:2/{rank}"]["differ"] == []
        assert "backend CUDA" in told[f"copy:2/{rank}"]["describe"]
    assert "rank 1 has ended" in told["leaves:2/0"]["told"]


@pytest.mark.gpu
@pytest.mark.timeout(200)
def test_ranks_that_share_a_device_copy_likewise_if_torch_is_told_to_let_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the way from one device to another: so much of it one device can show."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    told = told_by("tests.overlap.ring_ranks", "copy:2", "leaves:2")
    assert [told[f"copy:2/{rank}"]["differ"] for rank in range(2)] == [[], []]
    assert "rank 1 has ended" in told["leaves:2/0"]["told"]


@pytest.mark.gpu
@pytest.mark.timeout(200)
def test_ranks_that_share_a_device_are_refused_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", raising=False)
    told = told_by("tests.overlap.ring_ranks", "leaves:2")
    for rank in range(2):
        assert "rank 0 on cuda:0, rank 1 on cuda:0" in told[f"leaves:2/{rank}"]["told"]
