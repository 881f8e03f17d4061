"""Our side: a stage per function, every one at width 1, and the tuner that finds the widths while batches flow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, final

from benchmarks.peers_parts.engines import ENDLESS, Batches, Engine
from benchmarks.peers_parts.work import Work, as_tensors
from lightning_intune.control import Budget, Tuner, make_agent
from lightning_intune.control.agent import Agent
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource


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
    with ElasticLoader(transform) as loader:  # no prefetcher: a stage keeps twice its width ready by itself
        yield Tuned(loader, make_agent(agent))  # type: ignore[arg-type]


@final
class Tuned(Iterator[dict[str, Any]]):
    """A loader's batches; between two of them its tuner may turn the knobs."""

    def __init__(self, loader: ElasticLoader[dict[str, Any]], agent: Agent) -> None:
        self._loader, self._batches = loader, iter(loader)
        self._tuner = Tuner(agent=agent, knobs=loader.knobs, budget=Budget())

    def __next__(self) -> dict[str, Any]:
        batch = next(self._batches)
        self._tuner.step(self._loader.stats)
        return batch

    @property
    def widths(self) -> dict[str, int]:
        """What each stage is asked to have now."""
        return {name: stage.stats().target_workers for name, stage in self._loader.stages.items()}


def setting_of(work_name: str) -> str:
    """Tuned by the shipped agent; the tokeniser holds the GIL, so it runs in processes."""
    return "dqn/process" if work_name == "udf" else "dqn/thread"


OURS = Engine(name="ours", package="lightning-intune", open=ours)
