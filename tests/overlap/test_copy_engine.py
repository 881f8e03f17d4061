"""copy_engine: what it asks of streams and of torch, with stand-ins for both; its copies never ran."""

from __future__ import annotations

import ast
import contextlib
import inspect
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric

from lightning_intune.overlap.copy_engine import CopyEngineTransport
from tests.overlap.ranks import Rank, Threads, on_ranks, refusal
from tests.overlap.test_transport import host

SPOILT = 0xA5


class Stream:
    """Notes what is asked of it, in order."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: Stream) -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.notes.append("host waits")


class Control:
    """What the transport asks of `GlooChannel`, by threads."""

    def __init__(self, line: Threads) -> None:
        self.rank, self.world_size, self.all_to_all, self._line = line.rank, line.world_size, line.all_to_all, line

    def open(self) -> None:
        self._line.open()

    def gather(self, message: Any) -> list[Any]:
        return self._line.meeting.swap(self.rank, message)


class Device:
    """Stands for torch's symmetric memory and streams in every thread; a tensor's device is the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = threading.local()
        monkeypatch.setattr(symmetric, "get_backend", lambda _: "CUDA")
        monkeypatch.setattr(symmetric, "empty", self._empty)
        monkeypatch.setattr(symmetric, "rendezvous", self._rendezvous)
        monkeypatch.setattr(dist, "new_group", lambda **_: self.here.line)
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 3,
            "current_device": lambda: self.here.line.rank,
            "synchronize": lambda: self.here.notes.append("device waits"),
            "can_device_access_peer": lambda *_: True,
            "Stream": lambda _: Stream("side", self.here.notes),
            "current_stream": lambda _: Stream("current", self.here.notes),
            "stream": lambda _: contextlib.nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(CopyEngineTransport, "device_types", ("cpu",))

    def opened(self, rank: Rank) -> CopyEngineTransport:
        self.here.line, self.here.notes = rank.transport, []
        transport = CopyEngineTransport(host=host())
        transport._control = Control(rank.transport)  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(RuntimeError, match=r"copy_engine is not open. Call open\(\) on every rank first"):
            transport.all_to_all(torch.zeros(2), [1, 1], [1, 1])
        transport.open()
        transport.open()
        with pytest.raises(RuntimeError, match=f"was opened on 'cuda:{rank.rank}', and was given a tensor on 'cpu'"):
            transport.all_to_all(torch.zeros(2), [1, 1], [1, 1])
        transport._device = torch.device("cpu")
        return transport

    def _empty(self, *size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert (device.type, device.index) == ("cuda", self.here.line.rank)
        return torch.full(size, SPOILT, dtype=dtype)

    def _rendezvous(self, tensor: Tensor, group: Threads) -> Any:
        rooms = group.meeting.swap(group.rank, tensor)
        self.here.notes.append("shares")

        def get_buffer(rank: int, sizes: tuple[int], dtype: torch.dtype, storage_offset: int) -> Tensor:
            assert dtype == torch.uint8
            return rooms[rank][storage_offset : storage_offset + sizes[0]]

        return SimpleNamespace(rank=group.rank, get_buffer=get_buffer)


def test_copies_lie_between_two_points_of_the_callers_stream_and_the_host_waits_before_each_meeting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)

    def work(rank: Rank) -> tuple[list[Tensor], list[str]]:
        transport = device.opened(rank)
        sizes_in = [2, 2, 2] if rank.rank == 2 else [1, 1, 1]
        sents = [(torch.arange(8, dtype=dtype) + 10 * rank.rank)[::2] for dtype in (torch.float32, torch.int16)]
        got = [transport.all_to_all(sent, [1, 1, 2], sizes_in) for sent in sents]
        return got, device.here.notes

    # Each sends its first entry to rank 0, the second to rank 1 and two to rank 2.
    awaited = ([0, 10, 20], [2, 12, 22], [4, 6, 14, 16, 24, 26])
    fence = ["side waits for current", "host waits", "host waits", "current waits for side"]
    for rank, (got, notes) in enumerate(on_ranks(3, work)):
        assert [one.tolist() for one in got] == [awaited[rank]] * 2
        assert [one.dtype for one in got] == [torch.float32, torch.int16]
        assert notes == ["device waits", *fence[:2], "shares", *fence[2:], *fence]


def test_after_a_failure_the_callers_stream_still_waits_and_no_exchange_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)

    def work(rank: Rank) -> list[str]:
        transport = device.opened(rank)
        told = [refusal(lambda: transport.all_to_all(torch.zeros(2), [1, 1], [1, 1])) for _ in range(2)]
        assert device.here.notes[-1] == "current waits for side"
        return told

    def fail(self: Any, to: Tensor, source: Tensor) -> None:  # noqa: ARG001
        if device.here.line.rank == 1:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr("lightning_intune.overlap.device_window.DeviceWindow.copy", fail)
    for told in on_ranks(2, work):
        assert "rank 1 could not lay out its parcels" in told[0]
        assert "failed before (RuntimeError: overlap: rank 1 could not lay out its parcels" in told[1]


def test_ranks_that_torch_would_not_let_share_are_refused_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for told in on_ranks(2, lambda rank: refusal(lambda: device.opened(rank))):
        assert "rank 0 on cuda:0, rank 1 on cuda:0" in told


def test_memory_that_is_not_the_one_made_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    other = torch.zeros(10, dtype=torch.uint8)
    handle = SimpleNamespace(rank=0, get_buffer=lambda *_: other)

    def work(rank: Rank) -> str:
        transport = device.opened(rank)
        return refusal(lambda: transport.all_to_all(torch.zeros(2), [1, 1], [1, 1]))

    monkeypatch.setattr(symmetric, "rendezvous", lambda *_: handle)
    for told in on_ranks(2, work):
        assert "rank 0, 1 could not share its room (RuntimeError: overlap: torch's symmetric memory shares" in told


def test_it_says_what_it_found_takes_no_cpu_tensors_and_goes_to_other_processes_with_its_settings() -> None:
    transport = CopyEngineTransport(timeout_s=3.0, host=host())
    there = pickle.loads(pickle.dumps(transport))
    assert (there._timeout_s, there._host) == (3.0, host())
    assert "found 1 rank(s), 2 CUDA device(s), symmetric memory with backend CUDA. Never tried" in there.describe()
    transport.open()  # alone it opens nothing
    with pytest.raises(RuntimeError, match="copy_engine on rank 0 was given a tensor on 'cpu', and carries none but"):
        transport.all_to_all(torch.zeros(1), [1], [1])


def test_alone_it_gives_back_what_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CopyEngineTransport, "device_types", ("cpu",))
    sent = torch.arange(3)
    assert CopyEngineTransport(host=host()).all_to_all(sent, [3], [3]) is sent


def test_torch_declares_the_operations_that_are_called_as_they_are_called() -> None:
    """What the stand-ins above cannot show: that torch's own take the same arguments."""
    inspect.signature(symmetric.rendezvous).bind(torch.zeros(1), "group")
    inspect.signature(symmetric.empty).bind(256, dtype=torch.uint8, device=torch.device("cuda", 0))
    inspect.signature(symmetric.get_backend).bind(torch.device("cuda"))
    inspect.signature(symmetric.set_backend).bind("CUDA")
    stub = Path(torch.__file__).with_name("_C") / "_distributed_c10d.pyi"
    declared = next(
        node
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "_SymmetricMemory"
    )
    methods = {node.name: node for node in declared.body if isinstance(node, ast.FunctionDef)}
    names = [argument.arg for argument in methods["get_buffer"].args.args]
    assert names == ["self", "rank", "sizes", "dtype", "storage_offset"]
    assert isinstance(methods["rank"].decorator_list[0], ast.Name)  # a property
