"""Our side: a stage per function; tuned from width 1 while batches flow, or at fixed widths."""

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
    """`setting` is how the widths come about, and where the second stage runs.

    Either the agent's name (`dqn/thread`), which tunes both from 1, or the two widths (`4-1/thread`), which stay.
    """
    how, method = setting.split("/")
    is_fixed = how[0].isdigit()
    widths = tuple(map(int, how.split("-"))) if is_fixed else (1, 1)
    read = ElasticMapper(IterableSource(range(ENDLESS)), work.read, widths[0], name="read")
    transform = ElasticMapper(read, Transformed(work), widths[1], method=method, name="transform")  # type: ignore[arg-type]
    with ElasticLoader(transform) as loader:  # no prefetcher: a stage keeps twice its width ready by itself
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
    return f"dqn/{_method(work_name)}"


def fixed_settings(work_name: str) -> tuple[str, ...]:
    """Widths that nobody turns, of which the best takes part beside the tuned ones; the likeliest first."""
    by_work = {"remote": ("8-1", "4-1", "16-2"), "udf": ("1-2", "1-3", "2-2"), "sessions_layout": ("1-1", "2-1")}
    widths = by_work.get(work_name, ("2-1", "1-1", "2-2"))
    return tuple(f"{each}/{_method(work_name)}" for each in widths)


def _method(work_name: str) -> str:
    return "process" if work_name == "udf" else "thread"


OURS = Engine(name="ours", package="lightning-intune", open=ours)
FIXED = Engine(name="ours_fixed", package="lightning-intune", open=ours)
"""Ours at the best of its `fixed_settings`: what the engine does, without what the tuner does."""
