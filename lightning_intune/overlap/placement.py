"""Which ranks the rows of each table lie on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.table import Sharding, Table


@final
@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a table lies: what `Table.sharding` and `Table.rank` say, for tables that are described elsewhere."""

    sharding: Sharding
    rank: int | None = None


def placed(tables: Sequence[Table], world_size: int, sharding: Mapping[str, Any] | None = None) -> tuple[Table, ...]:
    """`tables`, every table-wise one with the rank that owns it. The same on every rank.

    `sharding` goes before what a table says itself: by its name a sharding, a `Placement`, or TorchRec's
    `ParameterSharding`. Table-wise tables without a rank then go, biggest first, to the rank that holds least of
    `tables` so far, in bytes, row-wise parts included. ConfigError for what does not fit the tables or the ranks.

    >>> tables = [Table(name=name, num_embeddings=9, embedding_dim=2, feature_names=("a",)) for name in "tu"]
    >>> [table.rank for table in placed(tables, 2, {"u": "table_wise"})]  # rank 0 holds 5 rows of t, rank 1 only 4
    [None, 1]
    """
    given = {} if sharding is None else dict(sharding)
    names = [table.name for table in tables]
    for name in given:
        if name not in names:
            raise ConfigError(f"overlap: sharding names '{name}', and the tables are {names}. Name one of them.")
    told = [_told(table, given[table.name]) if table.name in given else table for table in tables]
    for table in told:
        if table.rank is not None and table.rank >= world_size:
            raise ConfigError(
                f"table '{table.name}': rank={table.rank} is outside of the {world_size} rank(s), numbered from 0. "
                "Name one of them, or none: it is then chosen."
            )
    return _chosen(told, world_size)


def cut(table: Table, world_size: int) -> tuple[Tensor, Tensor]:
    """Of a placed table, by rank, the first id and how many rows each owns: [world_size] int64 both.

    Row-wise in blocks of ceil(rows / ranks), as TorchRec cuts; the last ranks' may be shorter, or empty.

    >>> [part.tolist() for part in cut(Table(name="t", num_embeddings=5, embedding_dim=2, feature_names=("a",)), 4)]
    [[0, 2, 4, 5], [2, 2, 1, 0]]
    """
    ranks = torch.arange(world_size)
    if table.sharding == "table_wise":
        assert table.rank is not None, "it is placed"
        return torch.zeros_like(ranks), (ranks == table.rank) * table.num_embeddings
    firsts = (ranks * block_rows(table, world_size)).clamp_(max=table.num_embeddings)
    return firsts, firsts.diff(append=torch.tensor([table.num_embeddings]))


def block_rows(table: Table, world_size: int) -> int:
    """Of a row-wise table, the rows of every block but the last ones."""
    return -(-table.num_embeddings // world_size)


def _chosen(tables: Sequence[Table], world_size: int) -> tuple[Table, ...]:
    """Entries are counted: the tables of a collection have one dtype, so bytes are in proportion."""
    loads = torch.zeros(world_size, dtype=torch.int64)
    free: list[int] = []
    for place, table in enumerate(tables):
        if table.sharding == "table_wise" and table.rank is None:
            free.append(place)
        else:
            loads += cut(table, world_size)[1] * table.embedding_dim
    out = list(tables)
    for place in sorted(free, key=lambda place: -_size(tables[place])):
        rank = int(loads.argmin())  # the first of equals
        out[place] = replace(tables[place], rank=rank)
        loads[rank] += _size(tables[place])
    return tuple(out)


def _size(table: Table) -> int:
    return table.num_embeddings * table.embedding_dim


def _told(table: Table, given: Any) -> Table:
    """A `ParameterSharding` is told by its fields, so that TorchRec need not be there."""
    if isinstance(given, str):
        return replace(table, sharding=given, rank=None)
    if isinstance(given, Placement):
        return replace(table, sharding=given.sharding, rank=given.rank)
    if not hasattr(given, "sharding_type"):
        raise ConfigError(
            f"table '{table.name}': {given!r} says not where it lies. Give 'row_wise', 'table_wise', a Placement, or "
            "TorchRec's ParameterSharding."
        )
    is_whole = given.sharding_type == "table_wise" and given.ranks  # row-wise, TorchRec lists all ranks or none
    return replace(table, sharding=given.sharding_type, rank=given.ranks[0] if is_whole else None)
