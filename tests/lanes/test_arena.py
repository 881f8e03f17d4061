"""Slots of shared memory: which one is taken, when one is free, and when it goes back to the system."""

from __future__ import annotations

import gc
import itertools
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.flow.lanes import wire
from lightning_intune.flow.lanes.arena import ALIGN, Budget, Mapping, SlotsIn, SlotsOut, fill, layout

PAGE = 4096


class Ends:
    """A sending side joined to a receiving one, in one process."""

    def __init__(self, max_bytes: int = 1 << 30, copy_below_bytes: int = 0, max_idle_bytes: int | None = None) -> None:
        self.budget = Budget(max_bytes)
        self.into = SlotsIn(self.budget, copy_below_bytes)
        self.out = SlotsOut(lambda slot, size, fd: self.into.add(slot, size, os.dup(fd)), max_idle_bytes)

    def send(self, value: int, num_bytes: int) -> np.ndarray:
        """One message: freed slots go back, a slot is filled, and seen from the other side."""
        self.out.give_back(self.into.drain_freed())
        self.into.drop(self.out.trim())
        slot, memory = self.out.take(num_bytes)
        fill(memory, 0, np.full(num_bytes, value, np.uint8))
        self.last_slot = slot
        return self.into.view(slot, num_bytes)


@pytest.fixture
def ends() -> Iterator[Ends]:
    yield Ends()
    gc.collect()


def num_mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:lightning_intune" in line for line in file)


def test_a_slot_is_used_again_once_its_last_view_is_gone(ends: Ends) -> None:
    first = ends.send(1, PAGE)
    part = first[10:20]
    ends.send(2, PAGE)
    assert ends.last_slot == 1  # slot 0 is held
    del first
    ends.send(3, PAGE)
    assert ends.last_slot == 1  # by a part still; slot 1 was let go at once
    assert part.tolist() == [1] * 10
    del part
    ends.send(4, PAGE)
    assert ends.last_slot == 0


def test_the_smallest_slot_that_fits_is_taken_and_none_far_too_large(ends: Ends) -> None:
    held = [ends.send(0, size * PAGE) for size in (100, 8, 10)]  # slots 0, 1, 2
    held.clear()
    ends.send(0, 8 * PAGE)
    assert ends.last_slot == 1
    ends.send(0, PAGE)
    assert ends.last_slot == 3  # 8 pages for one would be a waste: 4 x the size and a page at most


def test_slots_nobody_needed_for_a_while_go_back_to_the_system(ends: Ends) -> None:
    before = num_mappings()
    burst = [ends.send(value, PAGE) for value in range(20)]
    assert num_mappings() == before + 2 * 20  # both sides, in this process
    burst.clear()
    for _ in range(3 * 512):
        ends.send(0, PAGE)
    assert num_mappings() <= before + 2 * 2
    del ends.out, ends.into


def test_a_view_outlives_both_sides() -> None:
    ends = Ends()
    view = ends.send(7, PAGE)
    before = num_mappings()
    del ends
    gc.collect()
    assert num_mappings() < before
    assert (view == 7).all()


def test_no_descriptor_stays_open(ends: Ends) -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = [ends.send(value, PAGE) for value in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all((view == value).all() for value, view in enumerate(held))


def test_over_budget_and_small_results_are_copied_and_free_their_slot() -> None:
    ends = Ends(max_bytes=3 * PAGE, copy_below_bytes=100)
    small = ends.send(1, 99)
    first = ends.send(2, 2 * PAGE)  # an eighth more and a whole page: 3 pages
    second = ends.send(3, 2 * PAGE)
    third = ends.send(4, 2 * PAGE)
    assert ends.budget.held_bytes == 3 * PAGE
    assert [int(view[0]) for view in (small, first, second, third)] == [1, 2, 3, 4]
    assert ends.last_slot == 2  # what was copied leaves its slot to the next
    del first
    assert ends.budget.held_bytes == 0


def test_a_failed_mapping_says_what_failed() -> None:
    with pytest.raises(OSError, match="cannot map 4096 bytes"):
        Mapping(-1, PAGE)


@given(st.lists(st.integers(0, 10_000)))
def test_buffers_are_aligned_and_never_overlap(sizes: list[int]) -> None:
    offsets, end = layout(sizes)
    assert all(offset % ALIGN == 0 for offset in offsets)
    spans = list(zip(offsets, sizes, strict=True))
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(spans))
    assert end >= sum(sizes)


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 5)), max_size=60))
def test_what_is_held_keeps_its_content_whatever_comes_after(steps: list[tuple[int, int]]) -> None:
    ends = Ends(max_bytes=200_000, copy_below_bytes=500)
    held: list[tuple[int, np.ndarray]] = []
    for number, (num_bytes, drop) in enumerate(steps):
        value = number % 251
        held.append((value, ends.send(value, num_bytes)))
        if drop < len(held):
            held.pop(drop)
        assert all((view == value).all() for value, view in held)


def test_of_what_is_free_a_bounded_stage_keeps_little_and_an_unbounded_one_all(ends: Ends) -> None:
    bounded = Ends(max_idle_bytes=3 * PAGE)  # a slot of a page is two: an eighth more, rounded up
    for each in (ends, bounded):
        held = [each.send(n, PAGE) for n in range(10)]
        before = num_mappings()
        del held
        each.send(10, PAGE)  # tells that they are free
        each.send(11, PAGE)  # and that they are given up
        gone = 0 if each is ends else 9 * 2  # on both sides: one slot is free, and one in use
        assert before - num_mappings() == gone


def test_a_descriptor_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        sender, receiver = wire.Channel(ours, Budget(1 << 30)), wire.Channel(theirs, Budget(1 << 30))
        receive, late = socket.recv_fds, iter([True, True])

        def recv_fds(*arguments: object) -> object:
            if next(late, False):
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return receive(*arguments)

        monkeypatch.setattr(wire.socket, "recv_fds", recv_fds)
        sender.post(wire.DONE, [np.arange(100_000)])
        (array,) = receiver.take().values
        assert array.tolist() == list(range(100_000))
        assert next(late, None) is None
