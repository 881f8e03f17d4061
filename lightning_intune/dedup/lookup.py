"""TorchRec's tables looked up once per stored row, and expanded to the batch in one step per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from lightning_intune.dedup.groups import UniqueRows
from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.dedup.ragged import packed_starts, row_index
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.sparse.jagged_tensor import KeyedTensor

Features = InverseKeyedJaggedTensor | KeyedJagged


@final
@dataclass(frozen=True, kw_only=True)
class PooledGroup:
    """Pooled embeddings of one group's stored rows."""

    names: tuple[str, ...]
    """Of the embeddings, in the order of their columns."""
    dims: tuple[int, ...]
    """Columns of each."""
    values: Tensor
    """[U, sum of dims]."""
    inverse: Tensor | None
    """[B]; None where U = B."""

    def expanded(self) -> Tensor:
        """[B, sum of dims], in the batch's order."""
        return expand(self.values, self.inverse)


@final
class IkjtEmbeddingBagCollection(nn.Module):
    """A TorchRec `EmbeddingBagCollection`, looked up on unique rows; the tables, and so the state, stay TorchRec's.

    Bit for bit the forward result of the collection on the expanded batch; gradients differ in rounding only. A plain
    `KeyedJagged` gives the same as TorchRec. The collection must be whole, not sharded: there give TorchRec the result
    of `to_vbe_kjt`. On CPU, TorchRec 1.8's own handling of that is slower than to expand.

    Feature names may serve several tables. Weights are used if, and only if, the collection is weighted: then
    ConfigError for features without.
    """

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.collection = collection
        configs = collection.embedding_bag_configs()
        self._uses = [(config.name, name) for config in configs for name in config.feature_names]
        tables = [use[1] for use in self._uses]
        self._names = tuple(
            f"{feature}@{table}" if tables.count(feature) > 1 else feature for table, feature in self._uses
        )
        dims = {config.name: config.embedding_dim for config in configs}
        self._dims = tuple(dims[table] for table, _ in self._uses)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the embeddings, in TorchRec's order: table by table."""
        return self._names

    @property
    def dims(self) -> tuple[int, ...]:
        """The columns of each embedding."""
        return self._dims

    def groups(self, features: Features) -> list[PooledGroup]:
        """The pooled stored rows, group by group, for models that expand late; groups without a table are left out."""
        pooled = (self._pool(part) for part in _parts(features))
        return [group for group in pooled if group is not None]

    def forward(self, features: Features) -> KeyedTensor:
        """TorchRec's `KeyedTensor` of B rows."""
        from torchrec.sparse.jagged_tensor import KeyedTensor

        groups = self.groups(features)
        columns: dict[str, Tensor] = {}
        for group in groups:
            columns.update(zip(group.names, group.expanded().split(group.dims, dim=1), strict=True))
        missing = [feature for name, (_, feature) in zip(self._names, self._uses, strict=True) if name not in columns]
        if missing:
            raise KeyError(f"the batch has no feature '{missing[0]}', which a table wants; it has {features.keys()}")
        is_in_order = len(groups) == 1 and groups[0].names == self._names
        values = groups[0].expanded() if is_in_order else torch.cat([columns[name] for name in self._names], dim=1)
        return KeyedTensor(keys=list(self._names), length_per_key=list(self._dims), values=values)

    def _pool(self, part: UniqueRows) -> PooledGroup | None:
        keys = set(part.jagged.keys())
        chosen = [number for number, (_, feature) in enumerate(self._uses) if feature in keys]
        if not chosen:
            return None
        rows = _by_key(part)
        values: list[Tensor] = []
        for number in chosen:
            table, feature = self._uses[number]
            ids, offsets, weights = rows[feature]
            bag = self.collection.embedding_bags[table]
            if self.collection.is_weighted() and weights is None:
                raise ConfigError("the collection is weighted, and the batch has no weights. Give it weights.")
            per_sample = weights if self.collection.is_weighted() else None
            values.append(bag(input=ids, offsets=offsets, per_sample_weights=per_sample).float())
        return PooledGroup(
            names=tuple(self._names[number] for number in chosen),
            dims=tuple(self._dims[number] for number in chosen),
            values=values[0] if len(values) == 1 else torch.cat(values, dim=1),
            inverse=part.inverse,
        )


@final
@dataclass(frozen=True, kw_only=True)
class SequenceRows:
    """One feature's embeddings, value by value, for the stored rows."""

    values: Tensor
    """[N, D], the stored rows one after the other."""
    lengths: Tensor
    """[U]."""
    inverse: Tensor | None
    """[B]; None where U = B."""

    def padded(self, max_length: int) -> tuple[Tensor, Tensor]:
        """[U, max_length, D], zero beyond each row's end, and where that is: [U, max_length] bool, True within."""
        within = torch.arange(max_length, device=self.lengths.device) < self.lengths.unsqueeze(1)
        out = self.values.new_zeros(*within.shape, self.values.shape[1])
        return out.masked_scatter(within.unsqueeze(2), self.values), within


@final
class IkjtEmbeddingCollection(nn.Module):
    """A TorchRec `EmbeddingCollection` (embeddings of sequences, not pooled), looked up on unique rows.

    Bit for bit TorchRec's result once expanded. Where stored lists share a buffer (`share_shifted`), each buffer entry
    is looked up once, and the lists are cut out of the result.
    """

    def __init__(self, collection: EmbeddingCollection) -> None:
        super().__init__()
        self.collection = collection
        configs = collection.embedding_configs()
        self._table = {name: config.name for config in configs for name in config.feature_names}
        if len(self._table) < sum(len(config.feature_names) for config in configs):
            raise ConfigError("IkjtEmbeddingCollection: two tables share a feature. Give each its own feature name.")

    def forward(self, features: Features, key: str) -> SequenceRows:
        """The stored rows of one key; KeyError for a key without a table."""
        if key not in self._table:
            raise KeyError(f"no table looks up '{key}'; there are tables for {list(self._table)}")
        table = self.collection.embeddings[self._table[key]]
        if isinstance(features, KeyedJagged):
            values, lengths = features[key]
            return SequenceRows(values=table(values).float(), lengths=lengths, inverse=None)
        if features.starts() is not None:
            buffer, starts, lengths, _ = features.slices(key)
            inverse = features.unique_key(key).inverse
            rows = table(buffer).float().index_select(0, row_index(starts, lengths))
            return SequenceRows(values=rows, lengths=lengths, inverse=inverse)
        part = features.unique_key(key)
        values, lengths = part.jagged.values(), part.jagged.lengths()
        return SequenceRows(values=table(values).float(), lengths=lengths, inverse=part.inverse)


def expand(values: Tensor, inverse: Tensor | None) -> Tensor:
    """[U, ...] -> [B, ...], by one `index_select`, whose backward adds the rows of each stored one up."""
    return values if inverse is None else values.index_select(0, inverse)


def _parts(features: Features) -> Sequence[UniqueRows]:
    if isinstance(features, KeyedJagged):
        return [UniqueRows(jagged=features, inverse=None)]
    return [features.unique(group) for group in range(len(features.shapes()))]


def _by_key(part: UniqueRows) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Each key's values, its [U + 1] offsets, and its weights."""
    keys, num_rows = part.jagged.keys(), part.jagged.stride()
    lengths, values = part.jagged.lengths(), part.jagged.values()
    starts = torch.cat([packed_starts(lengths), lengths.new_full((1,), len(values), dtype=torch.int64)])
    bounds = starts[::num_rows].tolist() if num_rows else [0] * (len(keys) + 1)  # one wait for the device
    rows: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for place, key in enumerate(keys):
        begin, end = bounds[place], bounds[place + 1]
        offsets = starts[place * num_rows : (place + 1) * num_rows + 1] - begin
        weights = None if part.weights is None else part.weights[begin:end]
        rows[key] = values[begin:end], offsets, weights
    return rows
