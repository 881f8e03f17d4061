"""The three ways to train: TorchRec's pipeline, ours that waits, and ours that does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

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

WAYS = ("sync", "waiting", "ours")
"""TorchRec's `TrainPipelineSparseDist`; our pipeline with `overlap=False`; our pipeline."""
_TIMEOUT_S = 120.0


@final
class Ours:
    """Our pipeline as a contestant."""

    def __init__(self, case: Case, waits: Waits, *, overlap: bool) -> None:
        self.waits = waits
        table = Table(
            name="table", num_embeddings=NUM_EMBEDDINGS, embedding_dim=DIM, feature_names=tuple(case.features)
        )
        kind = OverlappedEmbeddingCollection if case.is_sequence else OverlappedEmbeddingBagCollection
        transport = GlooTransport(timeout_s=_TIMEOUT_S, link=case.link)
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


def contestant(way: str, case: Case, waits: Waits) -> Rival | Ours:
    """One of `WAYS`."""
    return Rival(case, waits) if way == "sync" else Ours(case, waits, overlap=way == "ours")
