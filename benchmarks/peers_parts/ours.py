"""Our side: a stage per function, every one at width 1, and the tuner that finds the widths while batches flow."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, final

from benchmarks.peers_parts.engines import ENDLESS, Batches, Engine
from benchmarks.peers_parts.work import Work, as_tensors
from lightning_intune.control import Budget, Tuner, make_agent
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource


@final
class Transformed:
    """The second stage's function: arrays, as tensors."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, table: Any) -> dict[str, Any]:
        return as_tensors(self.work.transform(table))


@contextmanager
def ours(work: Work, setting: str) -> Generator[Batches]:
    """`setting` is the agent's name, and for the GIL-bound workload where its second stage runs."""
    agent, method = setting.split("/")
    source = IterableSource(range(ENDLESS))
    read = ElasticMapper(source, work.read, 1, name="read")
    transform = ElasticMapper(read, Transformed(work), 1, method=method, name="transform")  # type: ignore[arg-type]
    loader: ElasticLoader[dict[str, Any]] = ElasticLoader(ElasticPrefetcher(transform, 2))
    tuner = Tuner(agent=make_agent(agent), knobs=loader.knobs, budget=Budget())  # type: ignore[arg-type]

    def batches() -> Generator[dict[str, Any]]:
        for batch in loader:
            yield batch
            tuner.step(loader.stats)

    try:
        yield batches()
    finally:
        loader.shutdown()


def setting_of(work_name: str) -> str:
    """Tuned by the shipped agent; the tokeniser holds the GIL, so it runs in processes."""
    return "dqn/process" if work_name == "udf" else "dqn/thread"


OURS = Engine(name="ours", package="lightning-intune", open=ours)
