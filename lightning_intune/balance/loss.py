"""The loss of a batch whose count differs from other ranks'."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Weighed(Protocol):
    """What is asked of a batch; `lightning_intune.dedup.Batch` has it."""

    @property
    def weights(self) -> Tensor | None: ...
    @property
    def loss_scale(self) -> Tensor | None: ...


def mean_loss(losses: Tensor, batch: Weighed) -> Tensor:
    """[B] losses as the scalar whose gradient, averaged over the ranks by DDP, is that of the global batch's mean.

    Weighted by `batch.weights` where there are some. With `batch.loss_scale` the sum is scaled, exactly, however the
    samples lie on the ranks; without it this is the batch's own mean, 0.0 where nothing weighs anything.

    >>> from lightning_intune.dedup import Batch, KeyedJagged
    >>> none = KeyedJagged([], torch.empty(0), torch.empty(0))
    >>> batch = Batch(dense=torch.ones(2, 0), sparse=none, labels=torch.ones(2, 1), loss_scale=torch.tensor(0.25))
    >>> mean_loss(torch.tensor([1.0, 3.0]), batch)  # one of two ranks, 8 samples in all
    tensor(1.)
    """
    if losses.ndim != 1:
        raise ValueError(f"mean_loss: losses have shape {list(losses.shape)}, and must be [B], one for each sample.")
    weights = torch.ones_like(losses) if batch.weights is None else batch.weights
    total = (losses * weights).sum()
    if batch.loss_scale is not None:
        return total * batch.loss_scale
    weight = weights.sum()
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))
