"""An embedding table as its user describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from lightning_intune.errors import ConfigError

Pooling = Literal["sum", "mean"]
Sharding = Literal["row_wise", "table_wise"]


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """`num_embeddings` rows of `embedding_dim` numbers, looked up by the ids of `feature_names`."""

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: tuple[str, ...]
    pooling: Pooling = "sum"
    """Of a bag's rows; sequences are not pooled, and ignore it."""
    sharding: Sharding = "row_wise"
    """Cut into blocks of rows over all ranks, or whole on one."""
    rank: int | None = None
    """A table-wise table's; None: one is chosen, so that ranks hold about equally many bytes."""

    def __post_init__(self) -> None:
        if self.num_embeddings < 1 or self.embedding_dim < 1:
            raise ConfigError(
                f"table '{self.name}': num_embeddings={self.num_embeddings} and embedding_dim={self.embedding_dim} "
                "must both be 1 or more, or it holds nothing. Correct them."
            )
        if not self.feature_names:
            raise ConfigError(f"table '{self.name}': no feature looks it up. Name one in feature_names.")
        if self.pooling not in ("sum", "mean"):
            raise ConfigError(f"table '{self.name}': pooling={self.pooling!r} is unknown. Use 'sum' or 'mean'.")
        if self.sharding not in get_args(Sharding):
            raise ConfigError(
                f"table '{self.name}': sharding={self.sharding!r} is not built. Use 'row_wise' or 'table_wise'."
            )
        if self.rank is not None and (self.sharding == "row_wise" or self.rank < 0):
            raise ConfigError(
                f"table '{self.name}': rank={self.rank} cannot own it, as sharding={self.sharding!r}. Give a rank of 0 "
                "or more to a table-wise table only; a row-wise one lies on all of them."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Use:
    """A table looked up by one feature: one embedding of the output."""

    table: int
    """Its place among the tables."""
    feature: str
    name: str
    """Of the embedding: the feature's, or FEATURE@TABLE where several tables serve the feature, as in TorchRec."""


def tables_of(configs: Sequence[Any]) -> tuple[Table, ...]:
    """`configs` as tables, TorchRec's `EmbeddingBagConfig` and `EmbeddingConfig` included; ConfigError for two names.

    >>> tables_of([Table(name="t", num_embeddings=5, embedding_dim=2, feature_names=("a", "b"))])[0].feature_names
    ('a', 'b')
    """
    tables = tuple(one if isinstance(one, Table) else _from_torchrec(one) for one in configs)
    if not tables:
        raise ConfigError("overlap: no table is given, so nothing can be looked up. Give one or more.")
    names = [table.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"overlap: two tables are named '{name}', and a state dict has one place for it. Rename.")
    return tables


def uses_of(tables: Sequence[Table]) -> tuple[Use, ...]:
    """Every embedding, in TorchRec's order: table by table, feature by feature."""
    pairs = [(place, feature) for place, table in enumerate(tables) for feature in table.feature_names]
    served = [feature for _, feature in pairs]
    return tuple(
        Use(
            table=place,
            feature=feature,
            name=f"{feature}@{tables[place].name}" if served.count(feature) > 1 else feature,
        )
        for place, feature in pairs
    )


def _from_torchrec(config: Any) -> Table:
    pooling: Any = getattr(config, "pooling", None)
    return Table(
        name=config.name,
        num_embeddings=config.num_embeddings,
        embedding_dim=config.embedding_dim,
        feature_names=tuple(config.feature_names),
        pooling="sum" if pooling is None else pooling.name.lower(),
    )
