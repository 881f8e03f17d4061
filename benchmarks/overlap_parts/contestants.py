"""The three ways to train: TorchRec's pipeline, ours that waits, and ours that does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from benchmarks.overlap_parts.noted import Ended, Noted
from benchmarks.overlap_parts.rival import Rival
from benchmarks.overlap_parts.waits import Waits
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
    def waits(self) -> Waits:
        """What its trainer has waited for, and when it came to its messages."""
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

    def __init__(self, case: Case, waits: Waits, *, overlap: bool, ended: Ended | None = None) -> None:
        self.waits = waits
        table = Table(
            name="table", num_embeddings=NUM_EMBEDDINGS, embedding_dim=DIM, feature_names=tuple(case.features)
        )
        kind = OverlappedEmbeddingCollection if case.is_sequence else OverlappedEmbeddingBagCollection
        transport: Transport = GlooTransport(timeout_s=_TIMEOUT_S, link=case.link)
        if ended is not None:
            transport = Noted(transport, ended)
        tables = kind([table], Adagrad(lr=LR, eps=EPS, row_wise=True), transport=transport)
        [key] = tables.state_dict()
        tables.load_state_dict({key: whole_table()})
        self.net = Net(tables, case)
        self.optimizer = torch.optim.SGD(self.net.over.parameters(), lr=LR)
        self.optimizer.register_step_pre_hook(lambda *_: self._handed_over())
        self._pipeline: Any = OverlappedTrainPipeline(self.net, self.optimizer, overlap=overlap, clock=self.waits.clock)

    def progress(self, batches: Iterator[Sample]) -> Tensor:
        return self._pipeline.progress(batches)

    def shutdown(self) -> bool:
        return self._pipeline.shutdown()

    def _handed_over(self) -> None:
        """The dense optimizer steps right behind the gradients' handing over."""
        self.waits.came()


def contestant(way: str, case: Case, waits: Waits, ended: Ended | None = None) -> Rival | Ours:
    """One of `WAYS`; `ended` is told of our messages."""
    return Rival(case, waits) if way == "sync" else Ours(case, waits, overlap=way == "ours", ended=ended)
