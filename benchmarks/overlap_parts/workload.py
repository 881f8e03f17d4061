"""What every pipeline of the benchmark trains: cases, batches, initial weights, and the dense part of the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from lightning_intune.overlap import Link

NUM_EMBEDDINGS, DIM = 400_000, 32
BATCH_SIZE, IDS_PER_SAMPLE = 256, 24
NUM_ROWS = BATCH_SIZE * IDS_PER_SAMPLE
"""Ids of a rank's batch, all of them different: TorchRec's deduplication of ids (`use_index_dedup`) has no CPU kernel,
so that repeated ids would cost it bytes which are no merit of a schedule."""
WIDTH = 640
LINK = Link(delay_s=2e-4, bytes_per_s=12.5e6)
"""Slow against what waking a thread takes where ranks share cores (up to a tick of 4 ms), which a faster link's waits
would consist of; but no slower than compute can cover. `FASTER_LINK` says what that is worth."""
FASTER_LINK = Link(delay_s=2e-4, bytes_per_s=25e6)
LR, EPS = 0.01, 1e-8


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """One model on one link. The ids of the batches are the same in all of them."""

    layout: str
    """`sequence`: `EmbeddingCollection`, a row per id, 24 to a sample. `one_hot`: `EmbeddingBagCollection`, 24 features
    of one id. `bags`: `EmbeddingBagCollection`, one feature of 24 ids, whose sum alone TorchRec sends."""
    collisions: float
    """Share of a batch's rows that stand in all batches of all ranks."""
    depth: int
    """Layers of the perceptron: compute to hide behind, on the CPUs that the exchange needs too."""
    link: Link | None
    """None: as fast as the machine's loopback is."""

    @property
    def is_sequence(self) -> bool:
        """Whether rows are not pooled."""
        return self.layout == "sequence"

    @property
    def features(self) -> list[str]:
        """Their names."""
        return [f"feature_{place}" for place in range(IDS_PER_SAMPLE)] if self.layout == "one_hot" else ["history"]

    @property
    def columns(self) -> int:
        """What a sample brings from the tables into the perceptron."""
        return DIM if self.layout == "bags" else DIM * IDS_PER_SAMPLE


DEPTH = 8
CASES = {
    "sequence-0": Case(layout="sequence", collisions=0.0, depth=DEPTH, link=LINK),
    "sequence-10": Case(layout="sequence", collisions=0.1, depth=DEPTH, link=LINK),
    "sequence-50": Case(layout="sequence", collisions=0.5, depth=DEPTH, link=LINK),
    "sequence-100": Case(layout="sequence", collisions=1.0, depth=DEPTH, link=LINK),
    "faster_link-10": Case(layout="sequence", collisions=0.1, depth=DEPTH, link=FASTER_LINK),
    "one_hot-10": Case(layout="one_hot", collisions=0.1, depth=DEPTH, link=LINK),
    "bags-10": Case(layout="bags", collisions=0.1, depth=DEPTH, link=LINK),
    "uncovered-10": Case(layout="sequence", collisions=0.1, depth=0, link=LINK),
    "unshaped-10": Case(layout="sequence", collisions=0.1, depth=DEPTH, link=None),
    "unshaped_bare-10": Case(layout="sequence", collisions=0.1, depth=0, link=None),
}


@final
@dataclass(frozen=True, eq=False)
class Sample(Pipelineable):
    """A batch."""

    sparse: KeyedJaggedTensor
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Sample:
        """The same: everything is on the CPU."""
        del device, non_blocking
        return self

    def record_stream(self, stream: torch.Stream) -> None:
        """CPUs have no streams."""


def batches(case: Case, rank: int, num_steps: int) -> list[Sample]:
    """Of `NUM_ROWS` distinct rows each; cold ones are shared neither by ranks nor by neighbouring steps."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(NUM_EMBEDDINGS)
    num_hot = round(case.collisions * NUM_ROWS)
    hot, cold = rows[:num_hot], rows[num_hot:]
    lengths = torch.full((len(case.features) * BATCH_SIZE,), IDS_PER_SAMPLE // len(case.features), dtype=torch.int32)
    out: list[Sample] = []
    for step in range(num_steps):
        place = ((step % 3) * 8 + rank) * (NUM_ROWS - num_hot)
        ids = rng.permutation(np.concatenate([hot, cold[place : place + NUM_ROWS - num_hot]]))
        labels = torch.from_numpy(rng.integers(0, 2, (BATCH_SIZE, 1))).float()
        sparse = KeyedJaggedTensor(case.features, torch.from_numpy(ids), lengths=lengths)
        out.append(Sample(sparse, labels))
    return out


@cache
def whole_table() -> Tensor:
    """[NUM_EMBEDDINGS, DIM], the same on every rank and in every pipeline."""
    return torch.randn(NUM_EMBEDDINGS, DIM, generator=torch.Generator().manual_seed(1)) * 0.1


class Net(nn.Module):
    """Embeddings through a perceptron; gives (loss, the same detached)."""

    def __init__(self, tables: nn.Module, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = tables
        self.is_sequence, self.num_columns = case.is_sequence, case.columns
        inner = [layer for _ in range(case.depth) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.over = nn.Sequential(nn.Linear(case.columns, WIDTH), nn.ReLU(), *inner, nn.Linear(WIDTH, 1))

    def forward(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """A sample's embeddings side by side: their order matters, so none could have been added up before."""
        looked_up = self.tables(batch.sparse)
        values = looked_up["history"].values() if self.is_sequence else looked_up.values()
        logits = self.over(values.view(-1, self.num_columns))
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
        return loss, loss.detach()
