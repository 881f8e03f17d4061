"""The nodes around the stages: filter, shuffle, zip, mix, repeat."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import (
    Batch,
    ElasticLoader,
    ElasticMapper,
    Filter,
    IterableSource,
    Mix,
    Node,
    Repeat,
    RowShuffle,
    Shuffle,
    Take,
    Zip,
)


class EpochSource(Node[str]):
    """`count` texts that tell their epoch, and a failure at the items in `bad`."""

    def __init__(self, name: str, count: int, bad: set[int] | None = None) -> None:
        super().__init__()
        self.name, self.count, self.bad, self.next_epoch = name, count, set(bad or ()), 0

    def set_epoch(self, epoch: int) -> None:
        self.next_epoch = epoch

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        state = initial_state or {"epoch": self.next_epoch, "position": 0}
        self.epoch, self.position = state["epoch"], state["position"]

    def next(self) -> str:
        if self.position in self.bad:
            raise OSError(f"item {self.position} is gone")
        if self.position == self.count:
            raise StopIteration
        self.position += 1
        return f"{self.name}{self.epoch}.{self.position - 1}"

    def get_state(self) -> Any:
        return {"epoch": self.epoch, "position": self.position}


def tables(*sizes: int) -> IterableSource[pa.Table]:
    """Row groups of the given sizes, whose rows are numbered through."""
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    return IterableSource(
        [
            pa.table({"row": list(range(b, b + n)), "group": [i] * n})
            for i, (b, n) in enumerate(zip(begins, sizes, strict=True))
        ]
    )


def test_a_filter_passes_what_the_predicate_holds_true_none_included() -> None:
    node = Filter(IterableSource([0, None, 1, "", 2]), lambda item: item is None or item == 2)
    assert list(node) == [None, 2]


def test_a_predicate_that_raises_stop_iteration_does_not_end_the_epoch() -> None:
    def stop(n: int) -> bool:
        if n == 2:
            raise StopIteration
        return True

    node = Filter(IterableSource(range(5)), stop, name="fresh")
    assert list(islice(node, 2)) == [0, 1]
    with pytest.raises(StageError, match="stage 'fresh': item 2 failed with StopIteration"):
        next(node)


def test_a_filter_that_failed_resumes_with_the_item_it_failed_on() -> None:
    bad = {5}

    def odd(n: int) -> bool:
        if n in bad:
            raise OSError("no answer")
        return n % 2 == 1

    node = Filter(IterableSource(range(10)), odd)
    assert list(islice(node, 2)) == [1, 3]
    with pytest.raises(OSError, match="item 5 failed with OSError: no answer"):
        next(node)
    state = node.state_dict()
    bad.clear()
    node.reset(state)
    assert list(node) == [5, 7, 9]


# ---- whatever a node has pulled when its source fails comes again after a resume ----

FAILING: dict[str, tuple[Callable[[Node[str]], Node[Any]], list[Any] | None]] = {
    "batch": (lambda source: Batch(source, 4), [["s0.0", "s0.1", "s0.2", "s0.3"]]),
    "zip": (
        lambda source: Zip(IterableSource(range(10)), source),
        [(0, "s0.0"), (1, "s0.1"), (2, "s0.2"), (3, "s0.3"), (4, "s0.4"), (5, "s0.5")],
    ),
    "shuffle": (lambda source: Shuffle(source, 4), None),
    "mix": (lambda source: Mix([source, IterableSource(range(3))], [1, 1]), None),
    "repeat": (lambda source: Repeat(source, 1), [f"s0.{n}" for n in range(6)]),
    "take": (lambda source: Take(source, 9), [f"s0.{n}" for n in range(6)]),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_source_that_fails_once_costs_no_item_over_a_resume(kind: str) -> None:
    make, expected_head = FAILING[kind]
    whole = list(make(EpochSource("s", 10)))
    source = EpochSource("s", 10, bad={6})
    node, head = make(source), []
    with pytest.raises(OSError, match="item 6 is gone"):
        head.extend(node)
    if expected_head is not None:
        assert head == expected_head
    state = node.state_dict()
    source.bad.clear()
    node.reset(state)
    assert head + list(node) == whole


@given(count=st.integers(0, 200), window=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_shuffle_gives_every_item_once_and_moves_none_by_a_window(count: int, window: int, seed: int) -> None:
    out = list(Shuffle(IterableSource(range(count)), window, seed=seed))
    assert sorted(out) == list(range(count))
    assert all(abs(place - item) < window for place, item in enumerate(out))


def test_a_window_as_large_as_the_epoch_makes_every_order_about_equally_likely() -> None:
    orders = Counter(tuple(Shuffle(IterableSource("abc"), 5, seed=seed)) for seed in range(1200))
    # 6 orders, 200 each expected, standard deviation sqrt(1200 * 1/6 * 5/6) = 12.9: five of them are 65.
    assert len(orders) == 6
    assert all(135 <= count <= 265 for count in orders.values())


def test_a_shuffle_pulls_one_item_per_item_after_its_first_run() -> None:
    source = EpochSource("s", 100)
    positions = [source.position for _ in islice(Shuffle(source, 10), 60)]
    assert positions == [min(11 + n, 100) for n in range(60)]


def test_epochs_and_seeds_have_their_own_orders_which_are_the_same_every_time() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        node = Shuffle(IterableSource(range(40)), 16, seed=seed)
        node.set_epoch(epoch)
        return list(node)

    orders = [order(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 6
    assert order(1, 2) == orders[5]


def test_a_new_epoch_said_in_the_middle_of_a_pass_changes_nothing_before_the_next_reset() -> None:
    for make in (
        lambda: Shuffle(IterableSource(range(20)), 6),
        lambda: Repeat(Shuffle(IterableSource(range(9)), 4), 2),
    ):
        node, whole = make(), list(make())
        head = list(islice(node, 5))
        node.set_epoch(7)
        assert head + list(node) == whole
        node.reset()
        assert list(node) != whole


def test_state_of_another_window_is_refused() -> None:
    state = Shuffle(IterableSource(range(9)), 3).state_dict()
    with pytest.raises(ConfigError, match=r"state is of window=3, and here it is 4.*Set the same window"):
        Shuffle(IterableSource(range(9)), 4).reset(state)


def test_a_shuffle_resumed_on_fewer_items_says_so_instead_of_ending() -> None:
    node = Shuffle(IterableSource(range(9)), 8)
    list(islice(node, 6))
    other = Shuffle(IterableSource(range(4)), 8)
    other.reset(node.state_dict())
    with pytest.raises(RuntimeError, match="a run of more than 6 items was saved, and the source now has 4"):
        next(other)


def test_a_strict_zip_of_unequal_sources_fails_whichever_ends_first() -> None:
    for sources, message in (
        (("ab", "abc"), "source 0 has ended, and source 1 goes on"),
        (("abc", "ab"), "source 1 has ended, and source 0 goes on"),
    ):
        node, out = Zip(*map(IterableSource, sources), strict=True), []
        with pytest.raises(ValueError, match=message):
            out.extend(node)
        assert out == [("a", "a"), ("b", "b")]
    assert list(Zip(IterableSource("ab"), IterableSource("cd"), strict=True)) == [("a", "c"), ("b", "d")]


def test_a_mix_draws_in_proportion_to_the_weights() -> None:
    mix = Mix([Repeat(IterableSource("a")), Repeat(IterableSource("b")), Repeat(IterableSource("c"))], [5, 3, 2])
    counts = Counter(Take(mix, 10_000))
    # Standard deviations are at most 50: within five of them.
    assert counts == {
        "a": pytest.approx(5000, abs=250),
        "b": pytest.approx(3000, abs=230),
        "c": pytest.approx(2000, abs=200),
    }


def test_a_mix_ends_as_its_stop_rule_says() -> None:
    def run(stop: Any) -> list[str]:
        node = Mix([EpochSource("a", 3), EpochSource("b", 6)], [1, 1], stop=stop, seed=1)
        return list(islice(node, 100))

    first, every, until = run("first_exhausted"), run("all_exhausted"), run("cycle_until_all_exhausted")
    assert every[: len(first)] == first
    assert sorted(every) == ["a0.0", "a0.1", "a0.2", *(f"b0.{n}" for n in range(6))]
    assert {"a0.2", "b0.5"} <= set(until)
    assert {"a0.2", "b0.5"} & set(first)
    assert len(run("cycle")) == 100
    assert run("cycle")[: len(until)] == until
    # A source that begins anew is told a new epoch: pass 1 of epoch 0.
    assert "a1.0" in run("cycle")


@given(
    stop=st.sampled_from(["first_exhausted", "all_exhausted", "cycle", "cycle_until_all_exhausted"]),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 3),
    cuts=st.lists(st.integers(0, 30), max_size=3),
)
def test_a_mix_resumes_anywhere_under_every_stop_rule(stop: Any, counts: list[int], seed: int, cuts: list[int]) -> None:
    def make() -> Take[str]:
        sources = [EpochSource("abcd"[i], count) for i, count in enumerate(counts)]
        return Take(Mix(sources, [1 + i for i in range(len(counts))], stop=stop, seed=seed), 80)

    out, state = [], None
    for cut in [*cuts, None]:
        node = make()
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
    assert out == list(make())


def test_repeat_tells_its_source_an_epoch_per_pass_and_none_twice() -> None:
    node = Repeat(EpochSource("s", 2), 2)
    assert list(node) == ["s0.0", "s0.1", "s1.0", "s1.1"]
    node.set_epoch(1)
    node.reset()
    assert list(node) == ["s2.0", "s2.1", "s3.0", "s3.1"]


def test_fewer_passes_than_a_state_had_end_with_the_one_it_is_in() -> None:
    node = Repeat(EpochSource("s", 2), 5)
    list(islice(node, 7))
    fewer = Repeat(EpochSource("s", 2), 3)
    fewer.reset(node.state_dict())
    assert list(fewer) == ["s3.1"]


def test_state_of_another_number_of_sources_is_refused() -> None:
    one, two = [IterableSource("a")], [IterableSource("a"), IterableSource("b")]
    with pytest.raises(ConfigError, match="Mix: this state is of 1 sources, and here are 2"):
        Mix(two, [1, 1]).reset(Mix(one, [1]).state_dict())
    with pytest.raises(ConfigError, match="Zip: this state is of 2 sources, and here are 1"):
        Zip(*one).reset(Zip(*two).state_dict())


def test_repeating_nothing_for_ever_says_so_and_a_number_of_times_gives_nothing() -> None:
    with pytest.raises(RuntimeError, match="a pass over the source gave no item"):
        next(Repeat(IterableSource([])))
    with pytest.raises(RuntimeError, match="source 0 gave no item in a whole pass"):
        next(Mix([IterableSource([])], [1], stop="cycle"))
    assert list(Repeat(IterableSource([]), 3)) == []


def test_stages_before_a_repeat_work_on_in_every_pass() -> None:
    node = Take(Repeat(ElasticMapper(EpochSource("s", 3), str.upper, 2)), 8)
    with ElasticLoader(node) as loader:
        assert list(loader) == ["S0.0", "S0.1", "S0.2", "S1.0", "S1.1", "S1.2", "S2.0", "S2.1"]


def graph(size: int) -> Node[Any]:
    """All of them, over items of `size` bytes."""
    items = ElasticMapper(IterableSource(range(4000)), lambda n: (n, bytes(size)), 2)
    node: Node[Any] = Filter(Shuffle(items, 100), lambda item: item[0] % 7 > 0)
    node = Mix([node, Repeat(IterableSource(range(50)), 100)], [1, 1])
    return Zip(Repeat(node, 3), Repeat(IterableSource("abc")))


def test_state_does_not_grow_with_position_nor_with_the_items() -> None:
    sizes = set()
    for size, position in ((1, 10), (1, 5000), (4000, 10), (4000, 5000)):
        node = graph(size)
        for _ in islice(node, position):
            pass
        sizes.add(len(pickle.dumps(node.state_dict())))
        node.shutdown()
    assert max(sizes) < 1000
    assert max(sizes) - min(sizes) < 60  # a number takes a byte or two more


@pytest.mark.parametrize("num_taken", [0, 5])
def test_a_copy_begins_anew_before_and_while_it_runs(num_taken: int) -> None:
    makers: list[Callable[[], Node[Any]]] = [
        lambda: Filter(Shuffle(IterableSource(range(30)), 8), bool),
        lambda: Mix([Repeat(IterableSource(range(3)), 2), IterableSource(range(9))], [1, 2]),
        lambda: Zip(IterableSource(range(9)), Batch(IterableSource(range(30)), 3)),
    ]
    for make in makers:
        node = make()
        list(islice(node, num_taken))
        assert list(pickle.loads(pickle.dumps(node))) == list(make())


SOURCE = IterableSource("abc")
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "predicate": (lambda: Filter(SOURCE, "yes"), "predicate='yes' cannot be called"),
    "window": (lambda: Shuffle(SOURCE, 0), "window=0 holds no item"),
    "seed": (lambda: Shuffle(SOURCE, 2, seed=-1), "Shuffle: seed=-1 is negative"),
    "row seed": (lambda: RowShuffle(SOURCE, 2, num_tables=2, seed=-1), "RowShuffle: seed=-1 is negative"),
    "batch size": (lambda: RowShuffle(SOURCE, 0, num_tables=2), "batch_size=0 makes no batch"),
    "tables": (lambda: RowShuffle(SOURCE, 2, num_tables=0), "num_tables=0 holds no rows"),
    "passes": (lambda: Repeat(SOURCE, 0), "num_passes=0 gives no item"),
    "weights": (lambda: Mix([SOURCE], [1, 2]), "2 weights for 1 sources"),
    "weight": (lambda: Mix([SOURCE], [0.0]), "must be a finite number above 0"),
    "stop": (lambda: Mix([SOURCE], [1], stop="never"), "stop='never' is unknown"),
    "no source": (lambda: Zip(), "Zip: it has no source"),
    "no node": (lambda: Zip(SOURCE, [1]), r"source 1 \(list\) is not a node"),
    "shared": (lambda: Mix([SOURCE, Take(SOURCE, 1)], [1, 1]), "source 1 shares a node with a source before it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_arguments_that_make_no_sense_are_refused_at_construction(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        make()
