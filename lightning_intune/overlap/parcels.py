"""Rows of several stacks in one message to each rank, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_intune.overlap.transport import Transport

Counts = Sequence[int]
"""Rows for, or from, each rank."""


def swap(
    transport: Transport, values: Sequence[Tensor], counts_out: Sequence[Counts], counts_in: Sequence[Counts]
) -> list[Tensor]:
    """Of every `values` [n] or [n, dim], all of one dtype, sorted by rank, send each rank its rows; what came likewise.

    One message per rank, however many `values` there are.
    """
    widths = [value.shape[1] if value.dim() == 2 else 1 for value in values]
    sizes_out = _sizes(counts_out, widths)
    sizes_in = _sizes(counts_in, widths)
    if len(values) == 1:
        received = transport.all_to_all(values[0].reshape(-1), sizes_out, sizes_in)
        return [received.view(-1, widths[0]) if values[0].dim() == 2 else received]
    parts = [value.split(list(counts)) for value, counts in zip(values, counts_out, strict=True)]
    ranks = range(transport.world_size)
    sent = torch.cat([part[rank].reshape(-1) for rank in ranks for part in parts])
    received = transport.all_to_all(sent, sizes_out, sizes_in)
    pieces = received.split(
        [counts[rank] * width for rank in ranks for counts, width in zip(counts_in, widths, strict=True)]
    )
    joined = [torch.cat([pieces[rank * len(values) + place] for rank in ranks]) for place in range(len(values))]
    return [
        flat.view(-1, width) if value.dim() == 2 else flat
        for flat, width, value in zip(joined, widths, values, strict=True)
    ]


def counts_where(mask: Tensor, counts: Counts) -> list[int]:
    """How many of each rank's entries in `mask` [sum of counts] are True.

    >>> counts_where(torch.tensor([True, False, True]), [2, 1])
    [1, 1]
    """
    upto = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(mask, 0)])
    ends = torch.cumsum(torch.tensor([0, *counts]), 0)
    return upto[ends].diff().tolist()


def _sizes(counts: Sequence[Counts], widths: Sequence[int]) -> list[int]:
    return [
        sum(count * width for count, width in zip(by_stack, widths, strict=True))
        for by_stack in zip(*counts, strict=True)
    ]
