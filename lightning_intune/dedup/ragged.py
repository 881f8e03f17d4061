"""Rows of a jagged tensor, gathered on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_starts(lengths: Tensor) -> Tensor:
    """Where each row begins when rows are packed, [R] int64.

    >>> packed_starts(torch.tensor([2, 0, 3])).tolist()
    [0, 2, 2]
    """
    return torch.cumsum(lengths, 0, dtype=torch.int64) - lengths


def gather_rows(
    values: Tensor, starts: Tensor, lengths: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The rows `values[starts[r] : starts[r] + lengths[r]]`, packed one after the other; and of `weights` likewise.

    >>> gather_rows(torch.tensor([7, 8, 9]), torch.tensor([1, 0]), torch.tensor([2, 1]))[0].tolist()
    [8, 9, 7]
    """
    index = row_index(starts, lengths)
    return values.index_select(0, index), None if weights is None else weights.index_select(0, index)


def row_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """[sum of lengths] int64: the place of every value of those rows."""
    shift = torch.repeat_interleave(starts - packed_starts(lengths), lengths.long())
    return torch.arange(len(shift), device=shift.device).add_(shift)
