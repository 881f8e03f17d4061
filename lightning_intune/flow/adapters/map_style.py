"""A map-style DataLoader as a graph: a source of indices, an elastic stage that fetches, one that pins."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, final

from torch.utils.data.dataloader import DataLoader

from lightning_intune.flow.adapters.fetch import FetchBatch
from lightning_intune.flow.adapters.options import Options
from lightning_intune.flow.adapters.order import IndexSource
from lightning_intune.flow.adapters.rank_share import index_sampler
from lightning_intune.flow.elastic import ElasticMapper
from lightning_intune.flow.lanes.lane import Lane, LanePool
from lightning_intune.flow.node import Node, State
from lightning_intune.flow.pin import Pin, can_pin
from lightning_intune.flow.stage import ElasticStage
from lightning_intune.knobs import Bounds

_MAX_WORKERS = 64


def map_style_graph(loader: DataLoader[Any], options: Options) -> Node[Any]:
    """The graph that gives `loader`'s batches, in its order."""
    source = IndexSource(
        partial(index_sampler, loader),
        generator=loader.generator,
        num_workers=loader.num_workers,
        persistent=loader.persistent_workers,
    )
    fetch = FetchBatch(
        loader.dataset,
        loader.collate_fn,
        batched=loader.batch_sampler is not None,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        seeded=options.method_for(loader) != "thread",
    )
    return pinned(FetchStage(source, fetch, loader, options), loader)


@final
class FetchStage(ElasticStage[Any]):
    """Indices into batches. Process lanes get a copy of the dataset as it is when an epoch begins, as workers do.

    They keep their first one where the loader's workers persist, and forks the one at construction.
    """

    def __init__(self, source: IndexSource, fetch: FetchBatch, loader: DataLoader[Any], options: Options) -> None:
        self._open = options.lanes_for(loader, fetch)
        self._keeps, self._max_concurrent = loader.persistent_workers, options.max_concurrent
        lanes = None if self._open is None else Unopened(options.method_for(loader))
        plan = options.plan(loader, fetch, lanes, in_order=loader.in_order)
        width = options.width_for(loader)
        high = max(width, _MAX_WORKERS if options.max_workers is None else options.max_workers)
        super().__init__(source, plan, width=width, bounds=Bounds(low=0, high=high))

    def reset(self, initial_state: State | None = None) -> None:
        if self._open is not None and not (self._keeps and not isinstance(self._plan.lanes, Unopened)):
            self._end_run()
            self._close_lanes()
            self._plan = replace(self._plan, lanes=self._open())
        super().reset(initial_state)

    def _widths(self) -> tuple[int, int | None]:
        return self._target, self._max_concurrent


@final
class Unopened(LanePool):
    """Lanes before the first epoch: nothing runs, and it is known what will."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def open(self) -> Lane:
        raise AssertionError("reset opens the lanes")

    def close(self) -> None:
        """Nothing is open."""


def pinned(node: Node[Any], loader: DataLoader[Any]) -> Node[Any]:
    """`node` with its batches in page-locked memory where the loader asks for it and an accelerator is there."""
    if not loader.pin_memory:
        return node
    if not can_pin():
        text = "elastic: pin_memory=True without an accelerator that can use it: batches stay in ordinary memory."
        warnings.warn(text, UserWarning, stacklevel=4)
        return node
    return ElasticMapper(node, Pin(), 1, name="pin")
