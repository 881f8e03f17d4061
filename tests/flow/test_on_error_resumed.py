"""What a stage has skipped, over resumes: counted once, never back, and what follows does not shift."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.flow import (
    Batch,
    ElasticMapper,
    ElasticPrefetcher,
    Filter,
    IterableSource,
    Node,
    Shuffle,
    Unbatch,
)
from tests.flow.fragile import ALWAYS, SEEDS, BadItemError, FailsFirst, fragile, good, is_bad


@given(num_items=st.integers(1, 90), cuts=st.lists(st.integers(0, 30), max_size=4), seed=SEEDS, in_order=st.booleans())
def test_resumed_runs_skip_and_count_every_bad_item_once(
    num_items: int, cuts: list[int], seed: int, in_order: bool
) -> None:
    rng, state, out = random.Random(seed), None, list[int]()
    for cut in [*cuts, None]:
        node = ElasticMapper(
            IterableSource(range(num_items)), fragile, rng.randint(0, 5), in_order=in_order, on_error=ALWAYS
        )
        node.reset(state)
        out += islice(node, cut)
        state = json.loads(json.dumps(node.state_dict()))
        node.shutdown()
    assert state is not None
    assert (out if in_order else sorted(out)) == good(num_items)
    assert state.get("skipped", 0) == num_items - len(good(num_items))


BEHIND: dict[str, Callable[[Node[Any]], Node[Any]]] = {
    "nothing": lambda node: node,
    "map": lambda node: ElasticMapper(node, abs, 3),
    "prefetch": lambda node: ElasticPrefetcher(node, 4),
    "sparse states": lambda node: ElasticMapper(node, abs, 2, snapshot_frequency=7),
    "unbatch": lambda node: Unbatch(Batch(node, 5)),
    "shuffle": lambda node: Shuffle(node, 16, seed=1),
    "shuffle and map": lambda node: ElasticMapper(Shuffle(node, 16, seed=1), abs, 2),
    "filter": lambda node: Filter(ElasticPrefetcher(node, 3), lambda n: n >= 0),
}


@pytest.mark.parametrize("behind", BEHIND)
@settings(max_examples=25)
@given(num_items=st.integers(1, 120), cuts=st.lists(st.integers(0, 40), max_size=4), seed=SEEDS)
def test_what_was_skipped_once_stays_skipped_though_it_would_do_after_a_resume(
    behind: str, num_items: int, cuts: list[int], seed: int
) -> None:
    # The worst case for nodes that pull again what they had: items fail in the run that meets them first only.
    def flaky(n: int) -> int:
        if is_bad(n) and n not in met:
            met.add(n)
            raise BadItemError(n)
        return n

    rng, state, out, met = random.Random(seed), None, list[int](), set[int]()
    for cut in [*cuts, None]:
        node = BEHIND[behind](
            ElasticMapper(IterableSource(range(num_items)), flaky, rng.randint(0, 4), on_error=ALWAYS)
        )
        node.reset(state)
        out += islice(node, cut)
        state = json.loads(json.dumps(node.state_dict()))
        node.shutdown()
    # An item whose failure the state had not heard of is tried again and comes: nothing is lost, nothing comes twice.
    counts = Counter(out)
    assert set(counts.values()) <= {1}
    assert set(good(num_items)) <= set(counts)
    if "shuffle" not in behind:
        assert out == sorted(out)


def test_what_came_out_before_and_fails_after_a_resume_is_raised_and_not_skipped() -> None:
    broken = set[int]()

    def read(n: int) -> list[int]:
        if n in broken:
            raise BadItemError("the file has gone")
        return [n] * 4

    def graph() -> Node[int]:
        return Unbatch(ElasticMapper(IterableSource(range(9)), read, 2, on_error=ALWAYS, name="read"))

    node = graph()
    assert list(islice(node, 10)) == [0] * 4 + [1] * 4 + [2] * 2
    state = json.loads(json.dumps(node.state_dict()))
    node.shutdown()
    broken.add(2)
    node = graph()
    with pytest.raises(BadItemError, match=r"stage 'read': item 2 failed.*came out before this state was saved"):
        node.reset(state)  # where Unbatch pulls again the item it was in
    broken = {5}  # what had not come out yet may still be skipped
    node = graph()
    node.reset(state)
    assert list(node) == [2] * 2 + [n for n in (3, 4, 6, 7, 8) for _ in range(4)]


def test_a_state_that_is_held_is_told_of_hundreds_of_items_skipped_since() -> None:
    function = FailsFirst(1)
    node = ElasticMapper(IterableSource(range(3000)), function, 2, on_error=ALWAYS)
    held = node.state_dict()
    assert list(node) == good(3000)
    again = ElasticMapper(IterableSource(range(3000)), function, 2, on_error=ALWAYS)
    again.reset(json.loads(json.dumps(held)))
    assert list(again) == good(3000)  # though the second call would do
    assert function.calls[3] == 1


def test_the_state_stays_small_and_goes_through_json_however_many_are_skipped() -> None:
    node = ElasticMapper(IterableSource(range(20_000)), fragile, 2, on_error=ALWAYS)
    sizes: list[int] = []
    for number, _ in enumerate(node):
        if number in (100, 15_000):
            sizes.append(len(json.dumps(node.state_dict())))
    assert max(sizes) < 1000


@settings(max_examples=6)
@given(num_items=st.integers(1, 80), cuts=st.lists(st.integers(0, 30), max_size=2), seed=SEEDS)
def test_processes_and_threads_resume_each_others_skips(num_items: int, cuts: list[int], seed: int) -> None:
    rng, state, out = random.Random(seed), None, list[int]()
    for cut in [*cuts, None]:
        method = rng.choice(["thread", "process"])
        node = ElasticMapper(
            IterableSource(range(num_items)), fragile, rng.randint(1, 2), method=method, on_error=ALWAYS
        )
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert state is not None
    assert out == good(num_items)
    assert state.get("skipped", 0) == num_items - len(good(num_items))


def test_a_dead_lane_is_not_the_policys_to_count_while_the_stage_is_stopped() -> None:
    # Shutdown kills lanes at work: what they worked on is neither skipped nor counted, and comes after the resume.
    node = ElasticMapper(IterableSource(range(200)), fragile, 2, method="process", on_error=ALWAYS)
    out = list(islice(node, 20))
    node.shutdown()
    state = node.state_dict()
    node.reset(state)
    out += list(node)
    assert out == good(200)
