"""A worker's thread computes alone; what others use is theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lightning_intune.flow import ElasticMapper, IterableSource


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Torch with two threads, as on any machine of two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _num_threads(_: int) -> int:
    torch.ones(1 << 20).mul_(2.0)  # large enough for torch to share out
    return torch.get_num_threads()


@pytest.mark.parametrize("width", [1, 3])
def test_a_function_in_a_worker_thread_has_one_native_thread(width: int) -> None:
    stage = ElasticMapper(IterableSource(range(6)), _num_threads, width)
    assert list(stage) == [1] * 6
    assert torch.get_num_threads() == 2


def test_the_consumer_keeps_its_threads_where_it_works_itself() -> None:
    assert list(ElasticMapper(IterableSource(range(2)), _num_threads, 0)) == [2, 2]


def test_threads_that_are_no_workers_keep_theirs() -> None:
    list(ElasticMapper(IterableSource(range(2)), _num_threads, 1))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(_num_threads(0)))
    thread.start()
    thread.join()
    assert found == [2]


def test_a_function_that_asks_for_more_gets_it() -> None:
    def own(_: int) -> int:
        torch.set_num_threads(2)
        return torch.get_num_threads()

    assert list(ElasticMapper(IterableSource(range(2)), own, 1)) == [2, 2]
