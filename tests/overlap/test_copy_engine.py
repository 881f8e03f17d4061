"""copy_engine: its order and sizes with ranks as threads and stand-ins for device memory; its copies never ran."""

from __future__ import annotations

import ast
import contextlib
import inspect
import pickle
import threading
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed import _symmetric_memory as symmetric

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.copy_engine import CopyEngineTransport
from lightning_intune.overlap.needs import refuse_unmet
from lightning_intune.overlap.pick_up import ALIGN_BYTES, PickUp, layout, roomy
from lightning_intune.overlap.seat import Seat, needs_of, own_seat
from tests.overlap.ranks import Rank, Threads, on_ranks
from tests.overlap.test_transport import host

SPOILT = 0xA5
DTYPES = (torch.float32, torch.bool, torch.bfloat16, torch.int64, torch.complex64, torch.uint8)


class LateWindow:
    """A copy is begun at once, which spoils what it goes to, and made later: `haste` of them whenever one is begun.

    So who reads before a copy was made, or writes before it was, finds the wrong bytes.
    """

    def __init__(self, line: Threads, haste: int, limit_bytes: int = 1 << 30) -> None:
        self.line, self.haste, self.limit_bytes = line, haste, limit_bytes
        self.made: list[Tensor] = []
        self.shared: list[list[Tensor]] = []
        self.begun: deque[tuple[Tensor, Tensor]] = deque()

    def make(self, num_bytes: int) -> None:
        if num_bytes > self.limit_bytes:
            raise RuntimeError("out of memory")
        self.made.append(torch.full((num_bytes,), SPOILT, dtype=torch.uint8))

    def share(self) -> None:
        rooms = self.line.meeting.swap(self.line.rank, self.made[-1])
        assert len({len(room) for room in rooms}) == 1, "torch wants rooms of one size"
        self.shared.append(rooms)

    def view(self, rank: int, begin: int, num_bytes: int) -> Tensor:
        room = self.shared[-1][rank]
        assert 0 < num_bytes <= len(room) - begin
        return room[begin : begin + num_bytes]

    def copy(self, to: Tensor, source: Tensor) -> None:
        to.fill_(SPOILT)
        self.begun.append((to, source))
        self._go_on(self.haste)

    def settle(self) -> None:
        self._go_on(len(self.begun))

    def _go_on(self, num_copies: int) -> None:
        for _ in range(min(num_copies, len(self.begun))):
            to, source = self.begun.popleft()
            to.copy_(source)


def parcel(call: int, sender: int, to: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(call * 100 + sender * 10 + to)
    return torch.randint(0, 2 if dtype == torch.bool else 100, (size,), generator=generator).to(dtype)


def exchanged(pick_up: PickUp, rank: int, call: int, table: list[list[int]], dtype: torch.dtype) -> Tensor:
    sent = torch.cat([parcel(call, rank, to, size, dtype) for to, size in enumerate(table[rank])])
    sizes_in = [row[rank] for row in table]
    received = torch.empty(sum(sizes_in), dtype=dtype)
    pick_up.exchange(sent, received, table[rank], sizes_in)
    return received


def refusal(work: Callable[[], Any]) -> str:
    """What it ends with. Raised out of one rank it would break the others' meetings."""
    with pytest.raises((RuntimeError, ConfigError)) as raised:
        work()
    return str(raised.value)


SIZES = st.sampled_from([0, 0, 1, 3, 70, 1500])


@settings(max_examples=80)
@given(num=st.integers(1, 4), num_calls=st.integers(1, 5), seed=st.integers(0, 999), data=st.data())
def test_every_parcel_arrives_whole_however_late_copies_are_made(
    num: int, num_calls: int, seed: int, data: st.DataObject
) -> None:
    """As by a plain all-to-all; rooms grow whenever a call needs more than all before."""
    table = st.lists(st.lists(SIZES, min_size=num, max_size=num), min_size=num, max_size=num)
    calls = data.draw(st.lists(st.tuples(st.sampled_from(DTYPES), table), min_size=num_calls, max_size=num_calls))
    haste = data.draw(st.lists(st.integers(0, 2), min_size=num, max_size=num))

    def work(rank: Rank) -> list[Tensor]:
        rank.transport.open()
        window = LateWindow(rank.transport, haste[rank.rank])
        pick_up = PickUp(rank.transport, window, least_bytes=1)
        got = [exchanged(pick_up, rank.rank, call, sizes, dtype) for call, (dtype, sizes) in enumerate(calls)]
        window.settle()  # as the caller's stream waits
        *before, last = [len(room) for room in window.made] or [0]
        assert sum(before) <= last
        return got

    for rank, got in enumerate(on_ranks(num, work, max_lag_s=0.001, seed=seed)):
        assert isinstance(got, list), got
        for call, (dtype, sizes) in enumerate(calls):
            awaited = [parcel(call, sender, rank, sizes[sender][rank], dtype) for sender in range(num)]
            assert torch.equal(got[call], torch.cat(awaited))


def test_an_exchange_takes_two_meetings_an_empty_one_a_single_one_and_growing_two_more() -> None:
    def work(rank: Rank) -> list[int]:
        rank.transport.open()
        pick_up = PickUp(rank.transport, LateWindow(rank.transport, 1), least_bytes=1)
        ends = [0]
        for call, size in enumerate([2, 2, 0, 500]):
            exchanged(pick_up, rank.rank, call, [[9, size], [0, 9]], torch.float32)
            ends.append(len(rank.transport.sent))
        return [end - begin for begin, end in pairwise(ends)]

    assert on_ranks(2, work) == [[4, 2, 1, 4]] * 2


@given(sizes=st.lists(st.integers(0, 10**6), min_size=1, max_size=8), data=st.data())
def test_parcels_lie_side_by_side_aligned_and_in_their_order(sizes: list[int], data: st.DataObject) -> None:
    own = data.draw(st.integers(0, len(sizes) - 1))
    begins, num_bytes = layout(sizes, own)
    place = 0
    for to, size in enumerate(sizes):
        if to == own:
            continue
        assert begins[to] >= place
        assert begins[to] % ALIGN_BYTES == 0
        assert begins[to] - place < ALIGN_BYTES
        place = begins[to] + size
    assert place <= num_bytes < place + ALIGN_BYTES


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_rooms_outgrown_are_never_more_than_the_last(wanted: list[int]) -> None:
    rooms = [0]
    for most_bytes in wanted:
        if most_bytes > rooms[-1]:
            rooms.append(roomy(most_bytes, rooms[-1]))
        assert rooms[-1] >= most_bytes
    assert sum(rooms[:-1]) <= rooms[-1]


def test_a_rank_without_memory_left_is_named_on_all_and_nobody_waits_for_its_room() -> None:
    shares: list[int] = []

    def work(rank: Rank) -> str:
        rank.transport.open()
        window = LateWindow(rank.transport, 1, limit_bytes=1000 if rank.rank == 1 else 10**6)
        window.share = lambda: shares.append(rank.rank)
        pick_up = PickUp(rank.transport, window, least_bytes=1)
        return refusal(lambda: exchanged(pick_up, rank.rank, 0, [[0, 500, 0]] * 3, torch.float32))

    told = on_ranks(3, work)
    assert told[1] == "overlap: rank 1 could not make 3072 bytes of room (RuntimeError: out of memory)"
    assert told[0] == told[2] == "overlap: rank 1 could not make 3072 bytes of room (see its own log)"
    assert not shares


def test_ranks_that_are_not_at_the_same_call_are_told_which() -> None:
    def work(rank: Rank) -> str:
        rank.transport.open()
        table = [[0, 4, 0], [2, 0, 0], [0, 0, 0]] if rank.rank != 1 else [[0, 5, 0], [2, 0, 0], [0, 0, 0]]
        pick_up = PickUp(rank.transport, LateWindow(rank.transport, 1))
        return refusal(lambda: exchanged(pick_up, rank.rank, 0, table, torch.float32))

    told = on_ranks(3, work)
    why = "ValueError: rank 0 sends 16 bytes where rank 1 awaits 20: they are not at the same call"
    assert told[1] == f"overlap: rank 1 could not lay out its parcels ({why})"
    assert told[0] == told[2] == "overlap: rank 1 could not lay out its parcels (see its own log)"


@pytest.mark.parametrize(
    ("sizes_out", "sizes_in", "dtype", "told"),
    [
        ([2, 2], [2, 1], torch.float32, "3 entries do not go out as"),
        ([3], [3], torch.float32, "3 entries do not go out as"),
        ([1, 2], [1, 1], torch.float32, "3 entries of torch.float32 have no room for"),
        ([1, 2], [1, 2], torch.int64, "have no room for .* of torch.float32"),
        ([1, 2], [2, 1], torch.float32, "rank 0 gives itself 1 and gets 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_told(
    sizes_out: list[int], sizes_in: list[int], dtype: torch.dtype, told: str
) -> None:
    line: Any = SimpleNamespace(rank=0, world_size=2)  # without `all_to_all`
    window: Any = None
    with pytest.raises(ValueError, match=told):
        PickUp(line, window).exchange(torch.zeros(3), torch.zeros(3, dtype=dtype), sizes_out, sizes_in)


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
