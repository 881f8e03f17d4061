"""Our side: a stage per function; tuned from width 1 while batches flow, or at fixed widths."""

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
    """`setting` is how the widths come about, and where the work is done.

    Either the agent's name (`dqn/thread`), which tunes all from 1, or the widths (`4-1/thread`), which stay. Threads
    have a stage per function; processes one stage for both, so that no table crosses from one process to another.
    """
    how, place = setting.split("/")
    is_fixed = how[0].isdigit()
    widths = [int(width) for width in how.split("-")] if is_fixed else [1, 1]
    source = IterableSource(range(ENDLESS))
    root: ElasticMapper[dict[str, Any]]
    if place == "process":
        root = ElasticMapper(source, Fused(work, tensors=True), widths[0], method=place, name="fused")
    else:
        read = ElasticMapper(source, work.read, widths[0], name="read")
        root = ElasticMapper(read, Transformed(work), widths[1], name="transform")
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


def setting_of(work_name: str) -> str:
    """Tuned by the shipped agent; the tokeniser holds the GIL, so it runs in processes."""
    return f"dqn/{_place(work_name)}"


def fixed_settings(work_name: str) -> tuple[str, ...]:
    """Widths that nobody turns, of which the best takes part beside the tuned ones; the likeliest first."""
    by_work = {"remote": ("8-1", "4-1", "16-2"), "udf": ("2", "1", "3"), "sessions_layout": ("1-1", "2-1")}
    widths = by_work.get(work_name, ("2-1", "1-1", "2-2"))
    return tuple(f"{each}/{_place(work_name)}" for each in widths)


def _place(work_name: str) -> str:
    return "process" if work_name == "udf" else "thread"


OURS = Engine(name="ours", package="lightning-intune", open=ours)
FIXED = Engine(name="ours_fixed", package="lightning-intune", open=ours)
"""Ours at the best of its `fixed_settings`: what the engine does, without what the tuner does."""
