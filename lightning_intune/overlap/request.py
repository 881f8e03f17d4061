"""The distinct rows of one stack that a rank's batch wants, and where each of its ids finds its row among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from lightning_intune.overlap.stack import Stack


@final
@dataclass(frozen=True, kw_only=True)
class Request:
    """`places` [n] are the rows' places on their owners, sorted by owner, no row twice; `counts` how many each has."""

    places: Tensor
    """int32: what goes over the wire."""
    counts: list[int]
    """By rank."""
    inverse: Tensor
    """[ids], of every id, one table's and feature's after the other: which of the n rows it means."""

    def __len__(self) -> int:
        return len(self.places)


def request(stack: Stack, ids: Sequence[tuple[int, Tensor]]) -> Request:
    """Of pairs of a table's number in `stack` and ids in it. IndexError as `Stack.addresses` has it.

    >>> from lightning_intune.overlap.table import Table
    >>> stack = Stack([Table(name="t", num_embeddings=6, embedding_dim=2, feature_names=("a",))], 2)
    >>> made = request(stack, [(0, torch.tensor([5, 0, 5, 3]))])
    >>> made.places.tolist(), made.counts, made.inverse.tolist()
    ([0, 0, 2], [1, 2], [2, 0, 2, 1])
    """
    found = [stack.addresses(table, values) for table, values in ids]
    addresses = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    distinct, inverse = torch.unique(addresses, return_inverse=True)  # sorted, and so by owner
    bounds = torch.arange(stack.world_size + 1) * stack.num_rows
    ends: list[int] = torch.searchsorted(distinct, bounds).tolist()
    counts = [end - begin for begin, end in pairwise(ends)]
    return Request(places=(distinct % stack.num_rows).int(), counts=counts, inverse=inverse)
