"""The three ways to train: TorchRec's pipeline, ours that waits, and ours that does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from benchmarks.overlap_parts.rival import Rival
from benchmarks.overlap_parts.workload import DIM, EPS, LR, NUM_EMBEDDINGS, Case, Net, Sample, whole_table
from lightning_intune.overlap import (
    Adagrad,
    GlooTransport,
    OverlappedEmbeddingBagCollection,
    OverlappedEmbeddingCollection,
    OverlappedTrainPipeline,
    Table,
)
from lightning_intune.overlap.transport import Transport

WAYS = ("sync", "waiting", "ours")
"""TorchRec's `TrainPipelineSparseDist`; our pipeline with `overlap=False`; our pipeline."""
_TIMEOUT_S = 120.0


class Contestant(Protocol):
    """A pipeline with its model."""

    @property
    def net(self) -> nn.Module:
        """The model."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of its dense part."""
        ...

    @property
    def waited_s(self) -> float:
        """What its trainer has waited for rows and gradients."""
        ...

    def progress(self, batches: Iterator[Sample]) -> Tensor:
        """Train on one batch; its loss."""
        ...

    def shutdown(self) -> bool:
        """End its thread, if it has one."""
        ...


@final
class Ours:
    """Our pipeline as a contestant."""

    def __init__(
        self,
        case: Case,
        *,
        overlap: bool,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        table = Table(
            name="table", num_embeddings=NUM_EMBEDDINGS, embedding_dim=DIM, feature_names=tuple(case.features)
        )
        kind = OverlappedEmbeddingCollection if case.is_sequence else OverlappedEmbeddingBagCollection
        transport = transport or GlooTransport(timeout_s=_TIMEOUT_S, link=case.link)
        tables = kind([table], Adagrad(lr=LR, eps=EPS, row_wise=True), transport=transport)
        [key] = tables.state_dict()
        tables.load_state_dict({key: whole_table()})
        self.net = Net(tables, case)
        self.optimizer = torch.optim.SGD(self.net.over.parameters(), lr=LR)
        self._pipeline: Any = OverlappedTrainPipeline(self.net, self.optimizer, overlap=overlap, clock=clock)

    @property
    def waited_s(self) -> float:
        return self._pipeline.waited_s

    def progress(self, batches: Iterator[Sample]) -> Tensor:
        return self._pipeline.progress(batches)

    def shutdown(self) -> bool:
        return self._pipeline.shutdown()


def contestant(way: str, case: Case) -> Contestant:
    """One of `WAYS`."""
    return Rival(case) if way == "sync" else Ours(case, overlap=way == "ours")
