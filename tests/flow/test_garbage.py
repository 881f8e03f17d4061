"""What nobody holds any more is collected, threads and all, however it refers to itself."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from lightning_intune.flow import (
    ElasticLoader,
    ElasticMapper,
    ElasticPrefetcher,
    Filter,
    IterableSource,
    Node,
    OnError,
)


class Pipeline:
    """The usual knot: its stage's function is a method, so the function refers to the stage."""

    def __init__(self, width: int, **settings: Any) -> None:
        stage = ElasticMapper(IterableSource(range(10**6)), self.work, width, **settings)
        self.loader = ElasticLoader(ElasticPrefetcher(stage, 2))

    def work(self, n: int) -> list[Any]:
        return [self, n, bytes(1000)]  # and what it gives refers to it too


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"in_order": False},
        {"prebatch": 4},
        {"max_bytes": 10},  # workers wait with an item in hand
        {"timeout_s": 60},
    ],
    ids=lambda settings: str(*settings) or "plain",
)
@pytest.mark.parametrize("width", [0, 1, 3])
def test_a_stage_whose_function_refers_back_to_it_goes_with_its_last_user(width: int, settings: dict[str, Any]) -> None:
    before = set(threading.enumerate())
    pipeline = Pipeline(width, **settings)
    assert [n for _, n, _ in islice(pipeline.loader, 5)] == list(range(5)) or "in_order" in settings
    dropped = weakref.ref(pipeline)
    workers = set(threading.enumerate()) - before
    assert workers
    del pipeline
    for _ in range(200):  # a worker may hold it while it works, and lets go when it waits
        gc.collect()
        if dropped() is None:
            break
        next(iter(workers)).join(0.01)
    assert dropped() is None
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def fails_on_2(n: int) -> list[int]:
    if n == 2:
        raise ValueError(n)
    return [n]


EVERYTHING = OnError(skip=True, max_share=1.0)
BEHIND_A_PREFETCHER: dict[str, Callable[[Node[int]], ElasticMapper[Any]]] = {
    "plain": lambda node: ElasticMapper(node, float, 2),
    "raises": lambda node: ElasticMapper(node, fails_on_2, 2),
    "raises, bounded": lambda node: ElasticMapper(node, fails_on_2, 2, max_bytes=1),
    "source raises": lambda node: ElasticMapper(Filter(node, fails_on_2), float, 2),
    "source raises in bursts": lambda node: ElasticMapper(Filter(node, fails_on_2), float, 2, prebatch=2),
    "source raises behind others": lambda node: ElasticMapper(Filter(node, fails_on_2), float, 2, prebatch=3),
    "skips": lambda node: ElasticMapper(node, fails_on_2, 2, on_error=EVERYTHING),
    "retries": lambda node: ElasticMapper(node, fails_on_2, 2, on_error=OnError(retries=1, backoff_s=0.0)),
    "skips after a retry": lambda node: ElasticMapper(
        node, fails_on_2, 2, on_error=OnError(retries=1, backoff_s=0.0, skip=True, max_share=1.0)
    ),
    "skips in a process": lambda node: ElasticMapper(node, fails_on_2, 1, method="process", on_error=EVERYTHING),
}


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("behind", BEHIND_A_PREFETCHER.values(), ids=BEHIND_A_PREFETCHER)
def test_errors_that_nobody_came_for_do_not_keep_a_dropped_graph_at_work(
    behind: Callable[[Node[int]], ElasticMapper[Any]],
) -> None:
    before = set(threading.enumerate())
    node = behind(ElasticPrefetcher(IterableSource([0, 1, *[2] * 10**4]), 2))
    assert len(list(islice(node, 2))) == 2
    workers = set(threading.enumerate()) - before
    assert workers
    for _ in range(2000):  # until the third item has failed
        if node.stats().num_ready > 0:
            break
        next(iter(workers)).join(0.005)
    assert node.stats().num_ready > 0
    del node
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)
