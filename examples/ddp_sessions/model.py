"""A sequence model that encodes each session's history once: attention over histories, asked by the item shown."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from lightning_intune.balance import mean_loss
from lightning_intune.dedup import Batch, DedupSequenceModel


class SessionModel(LightningModule):
    """Predicts the label from a history of ids, the item shown and dense features."""

    def __init__(
        self,
        history: str = "history0",
        target: str = "item0",
        num_dense: int = 2,
        num_embeddings: int = 10_000,
        embedding_dim: int = 16,
        max_length: int = 32,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        tables = [
            EmbeddingConfig(
                name=f"table_{key}", embedding_dim=embedding_dim, num_embeddings=num_embeddings, feature_names=[key]
            )
            for key in (history, target)
        ]
        self.model = DedupSequenceModel(
            EmbeddingCollection(tables=tables),
            history=history,
            target=target,
            num_dense=num_dense,
            max_length=max_length,
            num_layers=1,
        )
        self._learning_rate = learning_rate

    def loss(self, batch: Batch) -> torch.Tensor:
        """Scaled so that DDP's mean over ranks is the global batch's, however many rows each rank has."""
        logits = self.model(batch.dense, batch.sparse)
        losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")[:, 0]
        return mean_loss(losses, batch)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """One step; Lightning's hook."""
        loss = self.loss(batch)
        self.log("loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """One batch; Lightning's hook."""
        self.log("val_loss", self.loss(batch), batch_size=len(batch), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam over everything."""
        return torch.optim.Adam(self.parameters(), lr=self._learning_rate)
