"""What a stage has to stand: turned, stopped, copied, read and collected at the worst of moments."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest
import torch

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import (
    Batch,
    ElasticLoader,
    ElasticMapper,
    ElasticPrefetcher,
    EqualSteps,
    Filter,
    IterableSource,
    Mix,
    Node,
    PinMemory,
    PrefetchToDevice,
    Rebatch,
    Repeat,
    RowShuffle,
    Shuffle,
    Take,
    Unbatch,
    Zip,
)
from lightning_intune.flow.node import StoppedError


def same(item: Any) -> Any:
    return item


@contextmanager
def meanwhile(*deeds: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Each deed in a thread of its own, over and over, until the block ends; what they raised."""
    stop, errors = threading.Event(), list[BaseException]()

    def repeat(deed: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                deed()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_knobs_may_be_turned_and_meters_read_through_resets_shutdowns_and_states() -> None:
    first = ElasticMapper(IterableSource(range(300)), same, 2)
    second = ElasticMapper(first, same, 2, max_bytes=200)
    node = ElasticPrefetcher(second, 3)

    def turn(seed: int) -> Callable[[], object]:
        rng, stages = random.Random(seed), (first, second, node)

        def once() -> None:
            stage = rng.choice(stages)
            stage.resize(rng.randint(stage.bounds.low, 64))
            stage.stats()

        return once

    rng = random.Random(5)
    with meanwhile(turn(0), turn(1)) as errors:
        for _ in range(15):
            node.reset()
            cut = rng.randint(0, 100)
            assert list(islice(node, cut)) == list(range(cut))
            state = node.state_dict()
            if rng.random() < 0.3:
                node.shutdown()
            node.reset(state)
            assert list(islice(node, 50)) == list(range(cut, cut + 50))
    node.shutdown()
    assert errors == []


def test_shutdown_from_several_threads_at_once_is_never_an_epochs_end() -> None:
    for _ in range(10):
        node = ElasticPrefetcher(ElasticMapper(IterableSource(range(10**7)), same, 3), 3)
        next(node)
        threads = [threading.Thread(target=node.shutdown) for _ in range(3)]
        for thread in threads:
            thread.start()
        with pytest.raises(StoppedError):
            for _ in node:
                pass
        for thread in threads:
            thread.join()
        node.reset()
        assert list(islice(node, 5)) == list(range(5))
        node.shutdown()


def test_a_function_may_turn_read_and_save_its_own_stage() -> None:
    def nosy(n: int) -> int:
        node.resize(n % 5)
        node.stats()
        node.state_dict()
        return n

    node = ElasticMapper(IterableSource(range(200)), nosy, 2)
    assert list(node) == list(range(200))


def test_collections_at_any_moment_hold_up_neither_the_living_nor_the_dropped() -> None:
    class Knot:
        def __init__(self, max_bytes: int | None) -> None:
            self.stage = ElasticMapper(IterableSource(range(10**6)), self.work, 3, max_bytes=max_bytes)

        def work(self, n: int) -> list[Any]:
            return [self, n]

    gc.freeze()  # what other tests have left is no collection's business, and takes it long to look through
    try:
        with meanwhile(gc.collect) as errors:
            for number in range(20):
                knot = Knot(None if number % 2 else 50)
                assert [n for _, n in islice(knot.stage, number)] == list(range(number))
                del knot
    finally:
        gc.unfreeze()
    assert errors == []


def tables() -> Node[pa.Table]:
    return IterableSource([pa.table({"n": [1, 2, 3]})] * 3)


NODES: dict[str, Callable[[], Node[Any]]] = {
    "map": lambda: ElasticMapper(IterableSource(range(9)), same, 2),
    "prefetch": lambda: ElasticPrefetcher(IterableSource(range(9)), 2),
    "batch": lambda: Batch(IterableSource(range(9)), 2),
    "unbatch": lambda: Unbatch(Batch(IterableSource(range(9)), 4)),
    "rebatch": lambda: Rebatch(tables(), 2),
    "filter": lambda: Filter(IterableSource(range(9)), bool),
    "repeat": lambda: Repeat(IterableSource(range(3)), 2),
    "zip": lambda: Zip(IterableSource(range(3)), IterableSource(range(3))),
    "mix": lambda: Mix([IterableSource(range(3)), IterableSource(range(5))], [1, 2]),
    "take": lambda: Take(IterableSource(range(9)), 4),
    "shuffle": lambda: Shuffle(IterableSource(range(9)), 4),
    "row shuffle": lambda: RowShuffle(tables(), 2, num_tables=2),
    "equal steps": lambda: EqualSteps(IterableSource(range(4)), num_items=4),
    "pin": lambda: PinMemory(IterableSource(range(4))),
    "device": lambda: PrefetchToDevice(IterableSource([torch.ones(1)] * 3), "cpu"),
}


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node))], ids=["deep", "pickle"]
)
@pytest.mark.parametrize("name", NODES)
def test_a_copy_made_in_the_middle_of_a_pass_begins_anew_and_disturbs_nothing(name: str, make_copy: Any) -> None:
    node = NODES[name]()
    whole = [str(item) for item in node]
    node.reset()
    head = [str(next(node))]
    assert [str(item) for item in make_copy(node)] == whole
    assert head + [str(item) for item in node] == whole
    node.shutdown()


@pytest.mark.parametrize("state", [None, [], "state", {}, {"version": 1}])
def test_what_is_no_loaders_state_is_refused_in_words(state: Any) -> None:
    with pytest.raises(ConfigError, match="ElasticLoader: this state"):
        ElasticLoader(IterableSource(range(3))).load_state_dict(state)


def _places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    members = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, member in members:
        yield from _places(member, (*path, key))


def _with(state: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    copied = at = copy.deepcopy(state)
    for key in path[:-1]:
        at = at[key]
    change(at, path[-1])
    return copied


def _graph() -> ElasticLoader[Any]:
    node = Unbatch(Batch(ElasticMapper(IterableSource(range(60)), same, 2), 7))
    return ElasticLoader(ElasticPrefetcher(Shuffle(node, 8), 3))


def test_a_damaged_state_is_refused_in_words_wherever_it_is_damaged() -> None:
    with _graph() as loader:
        list(islice(loader, 23))
        state = loader.state_dict()
    deeds: list[Callable[[Any, Any], None]] = [
        lambda at, key: at.__delitem__(key),
        lambda at, key: at.__setitem__(key, "damaged"),
        lambda at, key: at.__setitem__(key, {"other": 1}),
    ]
    refused = 0
    for path in _places(state):
        for deed in deeds:
            with _graph() as loader:
                try:
                    loader.load_state_dict(_with(state, path, deed))
                    list(loader)
                except (ConfigError, StageError):  # the latter where it shows with the first item only
                    refused += 1
    assert refused > 30  # some parts may be anything: what an epoch's number is, nobody but the user knows
