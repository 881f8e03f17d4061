"""The two models: DLRM over all features, and attention over one long list. Plain and deduplicated batches alike."""

from __future__ import annotations

from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from benchmarks.train_parts.data import ITEM, NUM_DENSE, NUM_IDS, USER
from lightning_intune.dedup import Batch, DedupDlrm, DedupSequenceModel

DIM = 32
HISTORY, TARGET = USER[9], ITEM[0]  # 26 ids on average
MODELS = ("dlrm", "sequence")


def network(name: str) -> nn.Module:
    """`dlrm` or `sequence`, with one seed. Tables have sparse gradients: dense ones would cost all rows at each step.

    The batch's sparse part is used as it is: what is stored once is computed once, and plain rows cost what they cost
    any model of that kind.
    """
    torch.manual_seed(0)
    if name == "dlrm":
        bags = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=NUM_IDS + 1, feature_names=[key])
                for key in (*USER, *ITEM)
            ]
        )
        for bag in bags.embedding_bags.values():
            bag.sparse = True
        return DedupDlrm(bags, num_dense=NUM_DENSE, dense_sizes=[64, DIM], over_sizes=[256, 128, 1])
    tables = EmbeddingCollection(
        [
            EmbeddingConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=NUM_IDS + 1, feature_names=[key])
            for key in (HISTORY, TARGET)
        ]
    )
    for one in tables.embeddings.values():
        one.sparse = True
    return DedupSequenceModel(
        tables, history=HISTORY, target=TARGET, num_dense=NUM_DENSE, max_length=64, num_layers=2, hidden=64
    )


@final
class Clicks(LightningModule):
    """Predicts the label."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = network(name)

    def forward(self, batch: Batch) -> torch.Tensor:
        """[B, 1] logits."""
        return self.network(batch.dense, batch.sparse)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """The loss of one step; Lightning's hook."""
        return nn.functional.binary_cross_entropy_with_logits(self(batch), batch.labels)

    def configure_optimizers(self) -> Any:
        """Adagrad takes sparse gradients."""
        return torch.optim.Adagrad(self.parameters(), lr=0.02)
