"""Tables of one width as one array of rows, a part of it on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_intune.overlap.placement import block_rows, cut
from lightning_intune.overlap.table import Table


@final
class Stack:
    """Where the rows of `tables`, placed and all of one `embedding_dim`, lie on `world_size` ranks.

    What a rank owns of them lies one behind the other. A row's *address* is its owner's rank times `num_rows` plus its
    place there: sorted addresses are sorted by owner, and one number says where to send and what to read.

    >>> import dataclasses
    >>> cut, whole = (Table(name=name, num_embeddings=5, embedding_dim=2, feature_names=("a",)) for name in "tu")
    >>> stack = Stack([cut, dataclasses.replace(whole, sharding="table_wise", rank=1)], 2)
    >>> stack.held, stack.num_rows  # rank 1 has rows 3 and 4 of the first
    ([3, 7], 7)
    >>> stack.addresses(0, torch.tensor([0, 2, 3, 4])).tolist(), stack.addresses(1, torch.tensor([0, 4])).tolist()
    ([0, 2, 7, 8], [9, 13])
    """

    def __init__(self, tables: Sequence[Table], world_size: int) -> None:
        self.tables, self.world_size = tuple(tables), world_size
        self.dim = tables[0].embedding_dim
        cuts = [cut(table, world_size) for table in tables]
        self._firsts = torch.stack([firsts for firsts, _ in cuts])
        self._counts = torch.stack([counts for _, counts in cuts])
        self._begins = self._counts.cumsum(0) - self._counts
        self.held: list[int] = self._counts.sum(0).tolist()
        """By rank, how many rows it owns."""
        self.num_rows = max(self.held)
        # [tables, ranks]: what an id's address lies above it, if that rank owns it
        self._shifts = torch.arange(world_size) * self.num_rows + self._begins - self._firsts

    def addresses(self, table: int, ids: Tensor) -> Tensor:
        """Those of the rows `ids` [n] of table number `table`: [n] int64; IndexError for an id outside of it."""
        one = self.tables[table]
        ids, num_ids = ids.long(), one.num_embeddings
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= num_ids):
            wrong = ids[(ids < 0) | (ids >= num_ids)]
            raise IndexError(
                f"table '{one.name}': id {int(wrong[0])} is outside of its rows 0 to {num_ids - 1}. "
                "Hash or clip ids before they come here, or give the table more rows."
            )
        if one.rank is not None:
            return ids + self._shifts[table, one.rank]
        owners = torch.div(ids, block_rows(one, self.world_size), rounding_mode="floor")
        return self._shifts[table].index_select(0, owners).add_(ids)

    def owned(self, table: int, rank: int) -> tuple[slice, slice]:
        """The rows of a table that `rank` owns: as ids, and as places in its part of the stack."""
        first, begin, count = (int(one[table, rank]) for one in (self._firsts, self._begins, self._counts))
        return slice(first, first + count), slice(begin, begin + count)
