"""Our side: a stage per function or one for both; tuned from width 1 while batches flow, or at fixed widths."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, final

from benchmarks.peers_parts.engines import ENDLESS, Batches, Engine
from benchmarks.peers_parts.work import Fused, Work, as_tensors
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
    """`setting` is the shape, how its widths come about, and where it runs: `stages/dqn/thread`, `fused/2/process`.

    A shape has a stage per function, or one for both, as most peers have. Its widths are tuned from 1 by the agent that
    is named, or given (`4-1`) and left.
    """
    shape, how, place = setting.split("/")
    is_fixed = how[0].isdigit()
    widths = [int(width) for width in how.split("-")] if is_fixed else [1, 1]
    source = IterableSource(range(ENDLESS))
    root: ElasticMapper[dict[str, Any]]
    if shape == "fused":
        root = ElasticMapper(source, Fused(work, tensors=True), widths[0], method=place, name="fused")  # type: ignore[arg-type]
    else:
        read = ElasticMapper(source, work.read, widths[0], name="read")
        root = ElasticMapper(read, Transformed(work), widths[1], method=place, name="transform")  # type: ignore[arg-type]
    with ElasticLoader(root) as loader:  # no prefetcher: a stage keeps twice its width ready by itself
        yield iter(loader) if is_fixed else Tuned(loader, make_agent(how))  # type: ignore[arg-type]


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


def fixed_settings(work_name: str) -> tuple[str, ...]:
    """Widths that nobody turns, the likeliest first: the best one takes part, and its shape is the tuned one's too."""
    if work_name == "udf":  # the tokeniser holds the GIL
        return "fused/2/process", "fused/3/process"
    if work_name == "remote":
        return "stages/8-1/thread", "fused/8/thread", "stages/4-1/thread"
    return "fused/2/thread", "stages/1-1/thread", "stages/2-1/thread", "fused/3/thread"


def tuned(fixed: str) -> str:
    """That setting with widths which the shipped agent tunes from 1.

    >>> tuned("stages/8-1/thread")
    'stages/dqn/thread'
    """
    shape, _, place = fixed.split("/")
    return f"{shape}/dqn/{place}"


OURS = Engine(name="ours", package="lightning-intune", open=ours)
FIXED = Engine(name="ours_fixed", package="lightning-intune", open=ours)
"""Ours at the best of its `fixed_settings`: what the engine does, without what the tuner does."""
