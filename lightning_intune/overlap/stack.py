"""Tables of one width as one array of rows, a part of it on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lightning_intune.overlap.table import Table


@final
class Stack:
    """Where the rows of `tables`, all of one `embedding_dim`, lie on `world_size` ranks.

    Each table is cut into blocks of ceil(rows / ranks), rank r owning the r-th, as TorchRec's row-wise sharding does;
    a rank's blocks lie one behind the other. A row's *address* is its owner's rank times `num_rows` plus its place
    there: sorted addresses are sorted by owner, and one number says where to send and what to read.

    >>> stack = Stack([Table(name="t", num_embeddings=5, embedding_dim=2, feature_names=("a",))], 2)
    >>> stack.addresses(0, torch.tensor([0, 2, 3, 4])).tolist(), stack.num_rows
    ([0, 2, 3, 4], 3)
    """

    def __init__(self, tables: Sequence[Table], world_size: int) -> None:
        self.tables, self.world_size = tuple(tables), world_size
        self.dim = tables[0].embedding_dim
        self._block_rows = [-(-table.num_embeddings // world_size) for table in tables]
        self._begins = [sum(self._block_rows[:place]) for place in range(len(tables))]
        self.num_rows = sum(self._block_rows)
        """Of one rank; the last ranks' blocks may be shorter, or empty, and leave room."""

    def addresses(self, table: int, ids: Tensor) -> Tensor:
        """Those of the rows `ids` [n] of table number `table`: [n] int64; IndexError for an id outside of it."""
        ids, num_ids = ids.long(), self.tables[table].num_embeddings
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= num_ids):
            wrong = ids[(ids < 0) | (ids >= num_ids)]
            raise IndexError(
                f"table '{self.tables[table].name}': id {int(wrong[0])} is outside of its rows 0 to {num_ids - 1}. "
                "Hash or clip ids before they come here, or give the table more rows."
            )
        block_rows = self._block_rows[table]
        owners = torch.div(ids, block_rows, rounding_mode="floor")
        # owner * num_rows + begin + (id - owner * block_rows)
        return owners.mul_(self.num_rows - block_rows).add_(ids).add_(self._begins[table])

    def owned(self, table: int, rank: int) -> tuple[slice, slice]:
        """The rows of a table that `rank` owns: as ids, and as places in its part of the stack."""
        block_rows, num_ids = self._block_rows[table], self.tables[table].num_embeddings
        first = min(rank * block_rows, num_ids)
        count = min(block_rows, num_ids - first)
        begin = self._begins[table]
        return slice(first, first + count), slice(begin, begin + count)
