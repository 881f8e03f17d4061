"""What torchdata's own tests ask of ParallelMapper and Prefetcher, asked of ours, between torchdata's nodes.

The checks are those of test/nodes/test_map.py, test_prefetch.py and utils.py in pytorch/data (0.11).
"""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torchdata.nodes import BaseNode, Batcher, IterableWrapper, Loader, Mapper, ParallelMapper, Prefetcher

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher

LOADERS = pytest.mark.parametrize("kind", [Loader, ElasticLoader])
CUTS = pytest.mark.parametrize("cut", [0, 7, 13])
EVERY = pytest.mark.parametrize("every", [0, 1, 9])
PREBATCH = pytest.mark.parametrize("prebatch", [None, 3])
METHODS = pytest.mark.parametrize("method", ["thread", "process"])


def dawdle(item: Any) -> Any:
    """Some items take longer than others, by a few rounds of the interpreter."""
    sum(range(random.choice([0, 0, 0, 20_000])))
    return item


def fail(_: Any) -> Any:
    raise ValueError("as was to be shown")


class Rows:
    """An iterable that is no iterator: torchdata's wrapper begins it anew in every epoch."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __iter__(self) -> Any:
        for number in range(self.num_rows):
            yield {"number": number, "tensor": torch.tensor([number]), "text": f"row {number}"}


def numbers_of(rows: list[Any]) -> list[int]:
    """The rows' numbers, which their other fields must confirm."""
    assert all(row["tensor"].item() == row["number"] and row["text"] == f"row {row['number']}" for row in rows)
    return [row["number"] for row in rows]


class Epochs(BaseNode[Any]):
    """(epoch, item): a fresh reset begins another epoch, one with a state does not."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.epoch = num_items, -1

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        self.at, self.epoch = (0, self.epoch + 1) if initial_state is None else initial_state["at"]

    def next(self) -> Any:
        if self.at >= self.num_items:
            raise StopIteration
        self.at += 1
        return self.epoch, self.at

    def get_state(self) -> Any:
        return {"at": (self.at, self.epoch)}


def check_saves_and_loads(kind: Callable[..., Any], node: Any, cut: int) -> None:
    """States of the start, the middle of two epochs and the end of one, each loaded and run to the end twice over."""
    loader = kind(node)
    at_start = loader.state_dict()

    def epoch() -> tuple[list[Any], Any]:
        it = iter(loader)
        head = list(islice(it, cut))
        saved = loader.state_dict()
        return head + list(it), saved

    first, in_first = epoch()
    at_end = loader.state_dict()
    second, in_second = epoch()
    assert first != second

    loader.load_state_dict(in_first)
    assert list(loader) == first[cut:]
    assert list(loader) == second
    loader.load_state_dict(in_second)
    assert list(loader) == second[cut:]
    loader.load_state_dict(at_start)
    assert list(loader) == first
    assert list(loader) == second

    ending = kind(node, restart_on_stop_iteration=False)
    ending.load_state_dict(at_end)
    assert list(ending) == []
    going_on = kind(node)
    going_on.load_state_dict(at_end)
    assert list(going_on) == second


@LOADERS
@CUTS
@EVERY
@PREBATCH
def test_mapper_and_prefetcher_save_and_load(
    kind: Callable[..., Any], cut: int, every: int, prebatch: int | None
) -> None:
    node: Any = Batcher(Epochs(80), 6, drop_last=False)
    node = ElasticMapper(node, dawdle, num_workers=4, snapshot_frequency=every, prebatch=prebatch)
    check_saves_and_loads(kind, ElasticPrefetcher(node, prefetch_factor=2), cut)


@pytest.mark.parametrize(("cut", "every", "prebatch"), [(0, 1, None), (7, 0, 3), (13, 9, None), (7, 1, 3)])
def test_so_they_do_with_processes(cut: int, every: int, prebatch: int | None) -> None:
    node: Any = Batcher(Epochs(80), 6, drop_last=False)
    node = ElasticMapper(
        node,
        dawdle,
        num_workers=2,
        method="process",
        multiprocessing_context="forkserver",
        snapshot_frequency=every,
        prebatch=prebatch,
    )
    check_saves_and_loads(Loader, ElasticPrefetcher(node, prefetch_factor=2), cut)
    node.shutdown()


@LOADERS
@pytest.mark.parametrize("cut", [0, 7, 32])
@EVERY
def test_a_prefetcher_alone_saves_and_loads(kind: Callable[..., Any], cut: int, every: int) -> None:
    node = ElasticPrefetcher(Batcher(Epochs(200), 6, drop_last=False), prefetch_factor=8, snapshot_frequency=every)
    check_saves_and_loads(kind, node, cut)


@METHODS
@PREBATCH
@pytest.mark.parametrize("in_order", [True, False])
def test_two_epochs_by_hand_give_every_row_each(method: Any, prebatch: int | None, in_order: bool) -> None:
    node: Any = Batcher(IterableWrapper(Rows(80)), 6, drop_last=False)
    node = ElasticMapper(node, dawdle, num_workers=4, in_order=in_order, method=method, prebatch=prebatch)
    node = ElasticPrefetcher(node, prefetch_factor=2)
    for _ in range(2):
        node.reset()
        numbers = numbers_of([row for batch in node for row in batch])
        assert (numbers if in_order else sorted(numbers)) == list(range(80))
    node.shutdown()


def test_a_prefetcher_leaves_out_what_its_source_does_and_starts_again() -> None:
    node = ElasticPrefetcher(Batcher(IterableWrapper(Rows(20)), 6, drop_last=True), prefetch_factor=2)
    for _ in range(2):
        node.reset()
        assert [numbers_of(batch) for batch in node] == [list(range(k, k + 6)) for k in (0, 6, 12)]


@METHODS
def test_a_functions_error_comes_through_the_nodes_behind_it_as_what_it_was(method: Any) -> None:
    node: Any = ElasticMapper(Batcher(IterableWrapper(Rows(20)), 6), fail, num_workers=2, method=method)
    node = ElasticPrefetcher(Mapper(node, fail), prefetch_factor=2)
    with pytest.raises(ValueError, match="as was to be shown"):
        list(node)


class Unopened(BaseNode[Any]):
    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        raise ValueError("cannot be opened")

    def next(self) -> Any:
        raise AssertionError("it was never opened")

    def get_state(self) -> Any:
        return {}


@pytest.mark.parametrize(
    "make", [lambda node: ElasticPrefetcher(node, 2), lambda node: ElasticMapper(node, abs, 2)], ids=["prefetch", "map"]
)
def test_a_source_that_cannot_be_reset_says_so_where_the_first_item_is_asked_for(make: Any) -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        list(make(Unopened()))


@pytest.mark.parametrize("how", ["exception", "drop", "shutdown"])
def test_its_threads_end(how: str) -> None:
    before = set(threading.enumerate())
    node = ElasticMapper(IterableWrapper(Rows(1000)), fail if how == "exception" else dawdle, num_workers=2)
    node.reset()
    if how == "exception":
        with pytest.raises(ValueError, match="shown"):
            next(node)
    else:
        list(islice(node, 5))
    workers = set(threading.enumerate()) - before
    if how == "shutdown":
        node.shutdown()
    del node
    for worker in workers:
        worker.join(10)  # none is asked for where they have ended already; a dropped node cannot wait
    assert set(threading.enumerate()) <= before


def test_shutdown_reaches_a_source_that_has_one() -> None:
    class Closing(Epochs):
        num_shutdowns = 0

        def shutdown(self) -> None:
            self.num_shutdowns += 1

    source = Closing(9)
    node = ElasticPrefetcher(ElasticMapper(Batcher(source, 2), dawdle, num_workers=2), 2)
    next(node)
    node.shutdown()
    assert source.num_shutdowns > 0


@pytest.mark.parametrize(("ours", "theirs"), [(ElasticMapper, ParallelMapper), (ElasticPrefetcher, Prefetcher)])
def test_the_arguments_are_torchdatas_in_its_order_with_its_defaults(ours: Any, theirs: Any) -> None:
    wanted = list(inspect.signature(theirs.__init__).parameters.values())
    given = list(inspect.signature(ours.__init__).parameters.values())[: len(wanted)]
    assert [(one.name, one.default, one.kind) for one in given] == [(one.name, one.default, one.kind) for one in wanted]


@pytest.mark.parametrize("arguments", [{"prebatch": 0}, {"prebatch": -1}, {"method": "fiber"}, {"max_concurrent": 0}])
def test_what_torchdata_refuses_or_would_hang_on_is_a_value_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stage 'dawdle'") as caught:
        ElasticMapper(IterableWrapper(range(3)), dawdle, num_workers=2, **arguments)
    assert isinstance(caught.value, ConfigError)


def test_a_bound_below_or_above_the_width_is_kept_where_torchdata_wants_one_below() -> None:
    for bound in (1, 2, 9):
        node = ElasticMapper(IterableWrapper(range(30)), dawdle, num_workers=2, max_concurrent=bound)
        assert list(node) == list(range(30))


def test_state_and_items_may_be_asked_for_before_any_reset() -> None:
    node, other = (ElasticMapper(IterableWrapper(range(5)), dawdle, num_workers=2) for _ in range(2))
    state = node.state_dict()
    assert next(node) == 0
    other.reset(state)
    assert list(other) == list(range(5))
    node.shutdown()
