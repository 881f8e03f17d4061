"""The rows a rank owns of one stack, with the state of their optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from lightning_intune.overlap.row_optimizer import RowOptimizer
from lightning_intune.overlap.stack import Stack


@final
class Shard:
    """Reads and updates rows by their place. One thread at a time may touch it: the one that exchanges.

    `rank`'s rows are drawn uniformly from +-1 / sqrt(num_embeddings), as TorchRec's, by torch's seed and the rank, so
    that ranks with one seed hold different rows.
    """

    def __init__(self, stack: Stack, optimizer: RowOptimizer, rank: int, dtype: torch.dtype) -> None:
        self.stack, self.optimizer, self.rank = stack, optimizer, rank
        held = stack.held[rank]
        self.weights = torch.zeros(held, stack.dim, dtype=dtype)
        self.state = optimizer.new_state(self.weights)
        self.last_reader = torch.full((held,), -1, dtype=torch.int32)
        """By row, the number of the last batch that asked for it."""
        self._slots = torch.zeros(held, dtype=torch.int32)  # scratch of `_summed`; any content will do
        rng = torch.Generator().manual_seed((torch.initial_seed() + 1_000_003 * rank) % 2**63)
        for table, weights in enumerate(self.parts(self.weights)):
            bound = 1 / math.sqrt(stack.tables[table].num_embeddings)
            weights.uniform_(-bound, bound, generator=rng)

    def parts(self, values: Tensor) -> Iterator[Tensor]:
        """`values`, one entry per row, table by table: views of what is owned of each."""
        for table in range(len(self.stack.tables)):
            yield values[self.stack.owned(table, self.rank)[1]]

    def read(self, rows: Tensor) -> Tensor:
        """[n, dim]."""
        return self.weights.index_select(0, rows)

    def update(self, rows: Tensor, grads: Tensor, *, lr: float, step: int) -> None:
        """One optimizer step; a row that stands several times in `rows` [n] moves once, by its gradients' sum."""
        if len(rows) > 0:
            distinct, summed = self._summed(rows, grads)
            self.optimizer.update(self.weights, self.state, distinct, summed, lr=lr, step=step)

    def _summed(self, rows: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct rows, and the sum of each one's gradients in the order they have: no sort, no hash.

        Whichever of a row's places is written into `_slots` last stands for it, so what is there before is of no
        account.
        """
        places = torch.arange(len(rows), dtype=torch.int32)
        self._slots.index_copy_(0, rows, places)
        chosen = self._slots.index_select(0, rows)
        stands = chosen == places
        numbers = torch.cumsum(stands, 0) - 1
        distinct = rows[stands]
        if len(distinct) == len(rows):
            return rows, grads
        sums = grads.new_zeros(len(distinct), grads.shape[1])
        return distinct, sums.index_add_(0, numbers.index_select(0, chosen), grads)
