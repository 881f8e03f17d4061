"""Hammock: two fully connected layers over inputs that are cut into quantile bins and encoded one-hot.

Source: Saberian, Delgado, Raimond (2019), "Gradient Boosted Decision Tree Neural Network", arXiv 1910.09340: an
ensemble of decision trees is such a network with fixed thresholds; here the thresholds are the bins' boundaries, and
all weights are learnt.
"""

from __future__ import annotations

import math

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from lightning_intune.config import Schema
from lightning_intune.dedup import Batch


class Hammock(lightning.LightningModule):
    """One logit per sample from a schema of sparse features alone, each with one value per row.

    A first layer over one-hot inputs adds up one row of its weights per feature: that is an `EmbeddingBag`, which
    never makes the zeros. It begins at `base_rate`; `ridge` is the L2 penalty per sample on all weights but biases.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_hidden: int = 32,
        base_rate: float = 0.005,
        learning_rate: float = 2e-3,
        ridge: float = 1e-4,
    ) -> None:
        super().__init__()
        self.learning_rate, self.ridge = learning_rate, ridge
        sizes = [feature.num_embeddings for feature in schema.sparse]
        first_rows = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("first_rows", first_rows.unsqueeze(1))
        self.first = nn.EmbeddingBag(sum(sizes), num_hidden, mode="sum")
        nn.init.normal_(self.first.weight, std=1 / math.sqrt(len(sizes)))
        self.bias = nn.Parameter(torch.zeros(num_hidden))
        self.last = nn.Linear(num_hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, math.log(base_rate / (1 - base_rate)))

    def forward(self, batch: Batch) -> Tensor:
        """Click logits [B]."""
        places = batch.sparse.values().view(-1, len(batch)) + self.first_rows  # [features, B]: key by key
        return self.last(torch.tanh(self.first(places.T.contiguous()) + self.bias)).squeeze(1)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """The mean log loss of the batch."""
        return nn.functional.binary_cross_entropy_with_logits(self(batch), batch.labels[:, 0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, its penalty on weights alone."""
        weights, biases = [self.first.weight, self.last.weight], [self.bias, self.last.bias]
        groups = [{"params": weights, "weight_decay": self.ridge}, {"params": biases, "weight_decay": 0.0}]
        return torch.optim.Adam(groups, lr=self.learning_rate)
