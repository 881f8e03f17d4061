"""Optimizers that change the rows of one step and no others, and keep their state beside the rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_intune.errors import ConfigError


class RowOptimizer(ABC):
    """How a row changes by its gradient. Rows without a gradient in a step stay, with their state, as they are.

    `lr` is where a run begins; `OverlappedEmbeddingBagCollection.learning_rate` may change it.
    """

    lr: float

    @abstractmethod
    def new_state(self, weights: Tensor) -> dict[str, Tensor]:
        """Named tensors, each with an entry or a row for every row of `weights`; names as in TorchRec's."""

    @abstractmethod
    def update(
        self, weights: Tensor, state: dict[str, Tensor], rows: Tensor, grads: Tensor, *, lr: float, step: int
    ) -> None:
        """Change `weights[rows]` and its state in place; `rows` [n] are distinct, `grads` [n, dim], `step` from 1."""


@final
@dataclass(frozen=True, kw_only=True)
class SGD(RowOptimizer):
    """`torch.optim.SGD` without momentum."""

    lr: float

    def __post_init__(self) -> None:
        _check(self.lr)

    def new_state(self, weights: Tensor) -> dict[str, Tensor]:  # noqa: ARG002 - it has none
        return {}

    def update(
        self,
        weights: Tensor,
        state: dict[str, Tensor],  # noqa: ARG002 - it has none
        rows: Tensor,
        grads: Tensor,
        *,
        lr: float,
        step: int,  # noqa: ARG002 - every step alike
    ) -> None:
        weights.index_add_(0, rows, grads, alpha=-lr)


@final
@dataclass(frozen=True, kw_only=True)
class Adagrad(RowOptimizer):
    """`torch.optim.Adagrad` without decay; with `row_wise` one sum per row, of the mean square of its gradient.

    Source: Duchi et al. (2011); row-wise as fbgemm's EXACT_ROWWISE_ADAGRAD.
    """

    lr: float
    eps: float = 1e-10
    row_wise: bool = False

    def __post_init__(self) -> None:
        _check(self.lr)

    def new_state(self, weights: Tensor) -> dict[str, Tensor]:
        return {"momentum1": weights.new_zeros(len(weights)) if self.row_wise else torch.zeros_like(weights)}

    def update(
        self,
        weights: Tensor,
        state: dict[str, Tensor],
        rows: Tensor,
        grads: Tensor,
        *,
        lr: float,
        step: int,  # noqa: ARG002 - every step alike
    ) -> None:
        squares = grads.square()
        sums = state["momentum1"]
        grown = sums.index_select(0, rows).add_(squares.mean(dim=1) if self.row_wise else squares)
        sums.index_copy_(0, rows, grown)
        roots = grown.sqrt_().add_(self.eps)
        weights.index_add_(0, rows, grads / (roots.unsqueeze(1) if self.row_wise else roots), alpha=-lr)


@final
@dataclass(frozen=True, kw_only=True)
class Adam(RowOptimizer):
    """`torch.optim.SparseAdam`: a row's moments move when it has a gradient; the bias is corrected by the step.

    Source: Kingma & Ba (2015), section 2.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"Adam: betas={self.betas} must lie in [0, 1), or its means never end. Correct them.")

    def new_state(self, weights: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}

    def update(
        self, weights: Tensor, state: dict[str, Tensor], rows: Tensor, grads: Tensor, *, lr: float, step: int
    ) -> None:
        beta1, beta2 = self.betas
        mean = state["exp_avg"].index_select(0, rows).lerp_(grads, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).lerp_(grads.square(), 1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        weights.index_add_(0, rows, mean / square.sqrt_().add_(self.eps), alpha=-step_size)


def _check(lr: float) -> None:
    if not (lr >= 0 and math.isfinite(lr)):
        raise ConfigError(f"row optimizer: lr={lr} is no step length. Give a finite number of 0 or more.")
