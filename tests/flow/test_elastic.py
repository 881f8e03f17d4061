"""Elastic stages by hand-worked cases: what a user of torchdata's ParallelMapper would try first."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref
from itertools import islice
from typing import Any

import numpy as np
from torchdata.nodes import Batcher, IterableWrapper, Loader

from lightning_intune.flow import Batch as BatchNode
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource, Unbatch


def same(item: Any) -> Any:
    return item


def test_it_stands_where_a_parallel_mapper_stands_between_torchdata_nodes() -> None:
    node = Batcher(
        ElasticMapper(IterableWrapper(range(7)), lambda n: n + 1, num_workers=2), batch_size=3, drop_last=False
    )
    assert list(Loader(node)) == [[1, 2, 3], [4, 5, 6], [7]]


def test_none_is_an_item_and_ends_nothing() -> None:
    node = ElasticPrefetcher(ElasticMapper(IterableSource([1, None, 2]), same, 2), 2)
    with ElasticLoader(node) as loader:
        assert list(loader) == [1, None, 2]
        assert list(loader) == [1, None, 2]


def test_no_more_than_max_concurrent_items_are_taken_from_upstream_ahead_of_the_consumer() -> None:
    taken: list[int] = []

    def watched() -> Any:
        for n in range(50):
            taken.append(n)
            yield n

    node = ElasticMapper(IterableWrapper(watched()), same, 4, max_concurrent=3)
    ahead = 0
    for n in islice(node, 40):
        ahead = max(ahead, len(taken) - (n + 1))
    node.shutdown()
    assert ahead <= 3


def test_bytes_waiting_for_the_consumer_stay_within_the_bound() -> None:
    node = ElasticMapper(IterableSource(range(200)), lambda _: np.zeros(1000, np.uint8), 4, max_bytes=3500)
    most = 0
    for _ in node:
        most = max(most, node.stats().bytes_ready)
    assert 0 < most <= 3500


def test_an_item_larger_than_the_byte_bound_still_comes_through() -> None:
    node = ElasticMapper(IterableSource(range(20)), lambda n: np.full(5000, n, np.int64), 3, max_bytes=10)
    assert [int(array[0]) for array in node] == list(range(20))


def test_width_0_works_in_the_consumers_own_thread() -> None:
    threads: set[str] = set()

    def where(n: int) -> int:
        threads.add(threading.current_thread().name)
        return n

    assert list(ElasticMapper(IterableSource(range(5)), where, 0)) == list(range(5))
    assert threads == {threading.current_thread().name}


def test_growing_puts_more_workers_into_the_function_at_once() -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(n: int) -> int:
        together.wait()  # passes only when three workers are inside at the same time
        return n

    node = ElasticMapper(IterableSource(range(6)), meet, 1)
    starter = threading.Thread(target=lambda: node.resize(3))
    starter.start()
    assert list(node) == list(range(6))
    starter.join()


def test_shrinking_takes_effect_after_the_item_in_hand() -> None:
    node = ElasticMapper(IterableSource(range(10_000)), lambda n: (n, sum(range(5_000)))[0], 8)
    next(node)
    node.resize(1)
    assert node.num_workers == 1
    out = [n for n in islice(node, 5_000) if node.stats().live_workers > 1]
    assert out == list(range(1, len(out) + 1))
    assert len(out) < 200
    node.shutdown()


def test_a_stage_can_be_pickled_before_and_while_it_runs() -> None:
    node = ElasticMapper(IterableSource(range(5)), same, 2)
    next(node)
    copy = pickle.loads(pickle.dumps(node))
    node.shutdown()
    assert list(copy) == list(range(5))


def test_stats_count_what_happened() -> None:
    node = ElasticMapper(IterableSource(range(300)), lambda _: sum(range(2000)), 2, name="sum")
    list(node)
    node.reset()
    list(node)
    stats = node.stats()
    assert (stats.name, stats.lane, stats.num_items, stats.num_in_flight) == ("sum", "thread", 600, 0)
    assert stats.cpu_s > 0
    assert stats.busy_s > 0


def test_batches_and_their_members_resume_in_the_middle() -> None:
    node = Unbatch(BatchNode(IterableSource(range(10)), 4))
    assert list(islice(node, 6)) == [0, 1, 2, 3, 4, 5]
    other = Unbatch(BatchNode(IterableSource(range(10)), 4))
    other.reset(node.state_dict())
    assert list(other) == [6, 7, 8, 9]


def test_a_claim_of_many_tiny_items_is_shared_when_they_turn_slow() -> None:
    """Tiny items are claimed together; when they begin to wait for each other, every worker gets its own."""
    together = threading.Barrier(3, timeout=30)

    def turn_slow(n: int) -> int:
        if n >= 900:
            together.wait()  # passes only when three workers are inside at the same time
        return n

    assert list(ElasticMapper(IterableSource(range(930)), turn_slow, 3)) == list(range(930))


def test_former_passes_are_not_kept_alive() -> None:
    node = ElasticMapper(IterableSource(range(3)), same, 1)
    list(node)
    former = weakref.ref(node._run)
    node.reset()
    assert list(node) == [0, 1, 2]
    gc.collect()
    assert former() is None
