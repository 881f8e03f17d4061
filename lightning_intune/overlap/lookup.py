"""One batch's features against one collection's tables: which rows it asks for, and what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.bags import Bags, Features, bags_of
from lightning_intune.overlap.request import Request, request
from lightning_intune.overlap.stack import Stack
from lightning_intune.overlap.table import Table, Use, uses_of


@final
class Tables:
    """The placed tables of a collection, those of one width stacked."""

    def __init__(self, tables: Sequence[Table], world_size: int, *, is_weighted: bool = False) -> None:
        self.tables, self.uses, self.is_weighted = tuple(tables), uses_of(tables), is_weighted
        if is_weighted and any(table.pooling == "mean" for table in tables):
            raise ConfigError("overlap: a weighted mean is not defined here. Pool weighted tables by 'sum'.")
        dims = sorted({table.embedding_dim for table in tables})
        members = [[place for place, table in enumerate(tables) if table.embedding_dim == dim] for dim in dims]
        self.stacks = [Stack([tables[place] for place in group], world_size) for group in members]
        self.place = {table: (stack, group.index(table)) for stack, group in enumerate(members) for table in group}
        """By a table's number: that of its stack, and its own number there."""
        self.uses_by_stack = [[use for use in self.uses if use.table in group] for group in members]

    def lookup(self, features: Features) -> Lookup:
        """ConfigError for a feature that is missing, IndexError for an id outside of its table."""
        bags = bags_of(features)
        for use in self.uses:
            if use.feature not in bags:
                raise ConfigError(
                    f"table '{self.tables[use.table].name}' is looked up by feature '{use.feature}', and the batch has "
                    f"{list(bags)} only. Add the feature to the batch, or take it from the table."
                )
            if self.is_weighted and bags[use.feature].weights is None:
                raise ConfigError(f"feature '{use.feature}' has no weights, and the collection is weighted. Give them.")
        requests = [
            request(stack, [(self.place[use.table][1], bags[use.feature].ids) for use in uses])
            for stack, uses in zip(self.stacks, self.uses_by_stack, strict=True)
        ]
        return Lookup(tables=self, bags=bags, requests=requests)


@final
@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What the batch asks of each stack. `rows` below are, by stack, the rows asked for: [n, dim]."""

    tables: Tables
    bags: dict[str, Bags]
    requests: list[Request]

    def pooled(self, rows: Sequence[Tensor]) -> Tensor:
        """[B, sum of dims], the uses' columns in their order."""
        columns: dict[str, Tensor] = {}
        for uses, asked, values in zip(self.tables.uses_by_stack, self.requests, rows, strict=True):
            columns.update(self._columns(uses, asked, values))
        ordered = [columns[use.name] for use in self.tables.uses]
        return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=1)

    def sequences(self, rows: Sequence[Tensor]) -> list[tuple[Use, Bags, Tensor]]:
        """By use, the embeddings of its ids [N, dim], one bag after the other."""
        found: dict[str, tuple[Use, Bags, Tensor]] = {}
        for uses, asked, values in zip(self.tables.uses_by_stack, self.requests, rows, strict=True):
            all_bags = [self.bags[use.feature] for use in uses]
            parts = functional.embedding(asked.inverse, values).split([len(bags.ids) for bags in all_bags])
            for use, bags, part in zip(uses, all_bags, parts, strict=True):
                found[use.name] = use, bags, part
        return [found[use.name] for use in self.tables.uses]

    def _columns(self, uses: Sequence[Use], asked: Request, rows: Tensor) -> dict[str, Tensor]:
        all_bags = [self.bags[use.feature] for use in uses]
        lengths = torch.cat([bags.lengths for bags in all_bags]).long()
        weights = [bags.weights for bags in all_bags if bags.weights is not None] if self.tables.is_weighted else []
        sums = functional.embedding_bag(
            asked.inverse,
            rows,
            torch.cumsum(lengths, 0) - lengths,
            mode="sum",
            per_sample_weights=torch.cat(weights) if weights else None,
        )
        columns: dict[str, Tensor] = {}
        for use, bags, part in zip(uses, all_bags, sums.split([len(bags.lengths) for bags in all_bags]), strict=True):
            pooled = part
            if self.tables.tables[use.table].pooling == "mean":
                pooled = part / bags.lengths.clamp(min=1).unsqueeze(1)
            columns[use.name] = pooled if bags.inverse is None else pooled.index_select(0, bags.inverse)
        return columns
