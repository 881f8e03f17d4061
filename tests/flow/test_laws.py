"""The promises of a stage, as laws over random graphs, resizes, failures and cuts."""

from __future__ import annotations

import gc
import random
import sys
import threading
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import StageError
from lightning_intune.flow import (
    Batch,
    ElasticLoader,
    ElasticMapper,
    ElasticPrefetcher,
    IterableSource,
    Shuffle,
    Unbatch,
)
from tests.faults.census import LASTING
from tests.flow.graphs import GRAPHS, Step, build, end, resize_storm, rewidened, sequential, uneven_work

NUM_ITEMS = st.integers(0, 120)
SEEDS = st.integers(0, 2**32 - 1)


def stage_threads() -> list[str]:
    others = (thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    return [name for name in others if not name.startswith(LASTING)]  # a test before may have drawn a progress bar


@given(steps=GRAPHS, num_items=NUM_ITEMS)
def test_the_output_is_the_sequential_result(steps: list[Step], num_items: int) -> None:
    node = build(steps, num_items)
    assert list(node) == sequential(steps, num_items)
    end(node, steps)
    assert stage_threads() == []


@settings(max_examples=40)
@given(steps=GRAPHS, num_items=NUM_ITEMS, seed=SEEDS)
def test_resizing_at_any_moment_changes_nothing(steps: list[Step], num_items: int, seed: int) -> None:
    node = build(steps, num_items)
    with resize_storm(node, seed):
        assert list(node) == sequential(steps, num_items)
    end(node, steps)
    assert stage_threads() == []


@given(steps=GRAPHS, num_items=NUM_ITEMS, cut=st.integers(0, 130), seed=SEEDS)
def test_a_resumed_run_continues_as_if_never_stopped(steps: list[Step], num_items: int, cut: int, seed: int) -> None:
    first = build(steps, num_items)
    head = list(islice(first, cut))
    state = first.state_dict()
    first.shutdown()
    second = build(rewidened(steps, random.Random(seed)), num_items)
    second.reset(state)
    assert head + list(second) == sequential(steps, num_items)
    end(second, steps)
    assert stage_threads() == []


@settings(max_examples=40)
@given(steps=GRAPHS, num_items=NUM_ITEMS, cuts=st.lists(st.integers(0, 40), max_size=4), seed=SEEDS)
def test_cuts_of_resumed_runs_under_resizes_lose_and_repeat_nothing(
    steps: list[Step], num_items: int, cuts: list[int], seed: int
) -> None:
    rng, state, out = random.Random(seed), None, list[Any]()
    for cut in [*cuts, None]:
        node = build(rewidened(steps, rng), num_items)
        node.reset(state)
        with resize_storm(node, rng.randint(0, 99)):
            out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert out == sequential(steps, num_items)


@given(
    num_items=NUM_ITEMS, cuts=st.lists(st.integers(0, 60), max_size=3), widths=st.lists(st.integers(0, 6), min_size=4)
)
def test_without_order_every_item_still_comes_exactly_once_over_resumes(
    num_items: int, cuts: list[int], widths: list[int]
) -> None:
    state, out = None, list[int]()
    for cut, width in zip([*cuts, None], widths, strict=False):
        node = ElasticMapper(IterableSource(range(num_items)), lambda n: n, width, in_order=False)
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert sorted(out) == list(range(num_items))


@settings(max_examples=40)
@given(num_items=st.integers(1, 80), bad=st.integers(0, 79), widths=st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_a_failure_comes_in_its_items_place_and_leaves_nothing_running(
    num_items: int, bad: int, widths: list[int]
) -> None:
    def fragile(n: int) -> int:
        if n == bad:
            raise KeyError(f"no item {n}")
        return n

    node: Any = IterableSource(range(num_items))
    for width in widths:
        node = ElasticMapper(node, lambda n: n, width)
    node = ElasticMapper(ElasticMapper(node, fragile, widths[0], name="fragile"), lambda n: n, widths[-1])
    out: list[int] = []
    if bad < num_items:
        with pytest.raises(KeyError, match=f"stage 'fragile': item {bad} failed") as caught:
            out.extend(node)
        assert isinstance(caught.value, StageError)
        assert caught.value.item == bad
        with pytest.raises(StageError):
            next(node)
    else:
        out.extend(node)
    assert out == list(range(min(bad, num_items)))
    assert stage_threads() == []


@settings(max_examples=30)
@given(steps=GRAPHS, cut=st.integers(0, 50), how=st.sampled_from(["shutdown", "drop", "reset"]))
def test_nothing_is_left_running_however_a_run_ends(steps: list[Step], cut: int, how: str) -> None:
    node = build(steps, 100)
    head = list(islice(node, cut))
    if how == "shutdown":
        node.shutdown()
    elif how == "reset":
        node.reset()
        assert list(node) == sequential(steps, 100)
    gc.disable()  # nor has anybody to wait for a collection: no run refers to itself, whatever failed in it
    try:
        del node
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(5.0)  # a dropped graph tells its workers to leave; it cannot wait for them
        assert stage_threads() == []
    finally:
        gc.enable()
    assert head == sequential(steps, 100)[:cut]


@given(steps=GRAPHS, num_items=st.integers(1, 60), cut=st.integers(0, 70))
def test_a_loader_continues_mid_epoch_and_begins_the_next_epoch_at_its_end(
    steps: list[Step], num_items: int, cut: int
) -> None:
    whole = sequential(steps, num_items)
    with ElasticLoader(build(steps, num_items)) as loader:
        head = list(islice(loader, cut))
        state = loader.state_dict()
    with ElasticLoader(build(steps, num_items)) as resumed:
        resumed.load_state_dict(state)
        rest = list(resumed)
    assert rest == (whole[len(head) :] if cut < len(whole) else sequential(steps, num_items, epoch=1))


@pytest.mark.parametrize("position", [10, 5_000])
def test_state_stays_small_however_far_the_run_and_whatever_the_items(position: int) -> None:
    node = ElasticMapper(ElasticMapper(IterableSource(range(10_000)), lambda n: bytes(n), 3), bytes.upper, 2)
    for _ in islice(node, position):
        pass
    assert len(repr(node.state_dict())) < 400
    node.shutdown()


def calls_of(function: Any) -> list[str]:
    """Function calls, Python's and C's, that a call makes: its cost without a clock."""
    names: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            names.append(argument.__qualname__ if event == "c_call" else frame.f_code.co_qualname)

    gc.collect()  # what earlier tests have left is not this one's cost
    gc.disable()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return names


def test_taking_state_costs_no_more_far_into_a_run_or_with_large_items() -> None:
    costs: list[list[str]] = []
    for position, size in ((20, 1), (5_000, 1), (200, 100_000)):
        node = ElasticMapper(ElasticMapper(IterableSource(range(10_000)), lambda _, size=size: bytes(size), 3), len, 2)
        for _ in islice(node, position):
            pass
        node.state_dict()  # drops what only earlier items needed
        costs.append(calls_of(node.state_dict))
        node.shutdown()
    assert max(map(len, costs)) <= len(costs[0]) + 3, costs


@settings(max_examples=40)
@given(
    num_items=NUM_ITEMS,
    cuts=st.lists(st.integers(0, 60), max_size=3),
    behind=st.sampled_from(["prefetch", "map", "unordered", "prebatch", "batch", "unbatch", "shuffle"]),
    seed=SEEDS,
)
def test_behind_an_unordered_stage_every_item_still_comes_exactly_once_over_resumes(
    num_items: int, cuts: list[int], behind: str, seed: int
) -> None:
    rng, state, out = random.Random(seed), None, list[int]()
    for cut in [*cuts, None]:
        node: Any = ElasticMapper(IterableSource(range(num_items)), uneven_work, rng.randint(0, 4), in_order=False)
        if behind == "prefetch":
            node = ElasticPrefetcher(node, rng.randint(1, 6))
        elif behind in ("map", "unordered", "prebatch"):
            prebatch = 3 if behind == "prebatch" else None
            node = ElasticMapper(node, uneven_work, rng.randint(0, 3), in_order=behind == "map", prebatch=prebatch)
        elif behind == "shuffle":
            node = Shuffle(node, 7, seed=1)
        else:
            node = Unbatch(Batch(node, 4))
            node = node if behind == "unbatch" else ElasticMapper(node, uneven_work, 2)
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert sorted(out) == list(range(num_items))


def test_one_slow_item_in_an_unordered_stage_does_not_make_the_state_grow() -> None:
    release = threading.Event()

    def hold_the_first(n: int) -> int:
        if n == 0:
            release.wait(60)
        return n

    node = ElasticMapper(IterableSource(range(20_000)), hold_the_first, 2, in_order=False)
    ahead = list(islice(node, 4_000))
    assert 0 not in ahead
    assert len(repr(node.state_dict())) < 400
    release.set()
    assert sorted([*ahead, *node]) == list(range(20_000))
