"""What nobody holds any more is collected, threads and all, however it refers to itself."""

from __future__ import annotations

import gc
import threading
import weakref
from itertools import islice
from typing import Any

import pytest

from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource


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
