"""PickUp: its order and sizes, with ranks as threads and stand-ins for the memory that they share."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_intune.overlap.pick_up import ALIGN_BYTES, PickUp, layout, roomy
from tests.overlap.ranks import Rank, Threads, on_ranks, refusal

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
