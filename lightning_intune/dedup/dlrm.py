"""DLRM on unique rows: what belongs to one group is computed once per stored row, and expanded late."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from lightning_intune.dedup.lookup import Features, IkjtEmbeddingBagCollection, expand
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from torchrec.modules.embedding_modules import EmbeddingBagCollection


@final
class DedupDlrm(nn.Module):
    """Facebook's DLRM (Naumov et al., arXiv 1906.00091), the same function of batches plain and deduplicated.

    Dots between two features of one group, and their part of the first layer above, are computed on the group's stored
    rows; only dots across groups are computed for each row of the batch. Within 1e-5 of the plain batch's result,
    forward and backward: a matrix product over fewer rows is summed in another order.

    `collection` has tables of one width D, to which `dense_sizes` leads; `over_sizes` end in 1 for one logit. Inputs:
    `dense` [B, num_dense], and the batch's sparse part. Output: [B, over_sizes[-1]]. ConfigError for unequal widths.
    """

    def __init__(
        self,
        collection: EmbeddingBagCollection,
        *,
        num_dense: int,
        dense_sizes: Sequence[int],
        over_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.embeddings = IkjtEmbeddingBagCollection(collection)
        widths = set(self.embeddings.dims)
        if len(widths) != 1 or list(dense_sizes)[-1:] != list(widths) or not over_sizes:
            raise ConfigError(
                f"DedupDlrm: tables are {sorted(widths)} wide and dense_sizes={list(dense_sizes)}, over_sizes="
                f"{list(over_sizes)}. Dots need one width: give all tables, and the last of dense_sizes, the same."
            )
        self.dim = self.embeddings.dims[0]
        self.dense = _layers([num_dense, *dense_sizes], ends_linear=False)
        count = len(self.embeddings.names) + 1
        num_pairs = count * (count - 1) // 2
        self.first = nn.Linear(self.dim + num_pairs, over_sizes[0])
        self.rest = _layers(over_sizes, ends_linear=True)
        # The column of the first layer for the dot of each two features; 0 is the dense one, as in TorchRec's DLRM.
        pairs = torch.zeros(count, count, dtype=torch.int64)
        rows, columns = torch.triu_indices(count, count, offset=1)
        pairs[rows, columns] = pairs[columns, rows] = self.dim + torch.arange(num_pairs)
        self._pair_columns: Tensor
        self.register_buffer("_pair_columns", pairs, persistent=False)

    def forward(self, dense: Tensor, sparse: Features) -> Tensor:
        """[B, over_sizes[-1]] logits."""
        bottom = self.dense(dense)
        weight = self.first.weight
        groups = self._groups(bottom, sparse)
        if len(groups) == 1:  # nothing is stored once: the columns of the first layer are in order
            return self.rest(self.first(torch.cat([bottom, _dots(groups[0][2])], dim=1)))
        hidden = nn.functional.linear(bottom, weight[:, : self.dim], self.first.bias)
        blocks: list[tuple[Tensor, Tensor]] = []  # features [F] and their embeddings [B, F, D]
        for inverse, features, values in groups:
            left, right = torch.triu_indices(len(features), len(features), offset=1, device=values.device)
            if len(left):
                columns = self._pair_columns[features[left], features[right]]
                own = nn.functional.linear(_dots(values), weight.index_select(1, columns))
                hidden = hidden + expand(own, inverse)
            whole = expand(values.flatten(1), inverse).unflatten(1, values.shape[1:])
            for others, other in blocks:
                cross = torch.bmm(whole, other.transpose(1, 2)).flatten(1)
                columns = self._pair_columns[features.unsqueeze(1), others.unsqueeze(0)].flatten()
                hidden = hidden + nn.functional.linear(cross, weight.index_select(1, columns))
            blocks.append((features, whole))
        return self.rest(hidden)

    def _groups(self, bottom: Tensor, sparse: Features) -> list[tuple[Tensor | None, Tensor, Tensor]]:
        """Inverse, features' numbers and embeddings of each group; the dense one joins those stored row by row."""
        names = self.embeddings.names
        plain_numbers, plain_values = [torch.zeros(1, dtype=torch.int64)], [bottom.unsqueeze(1)]
        made: list[tuple[Tensor | None, Tensor, Tensor]] = []
        for group in self.embeddings.groups(sparse):
            numbers = torch.tensor([names.index(name) + 1 for name in group.names])
            values = group.values.unflatten(1, (len(numbers), self.dim))
            if group.inverse is None:
                plain_numbers.append(numbers)
                plain_values.append(values)
            else:
                made.append((group.inverse, numbers.to(bottom.device), values))
        numbers = torch.cat(plain_numbers).to(bottom.device)
        return [(None, numbers, torch.cat(plain_values, dim=1)), *made]


def _dots(values: Tensor) -> Tensor:
    """[B, F, D] -> [B, F (F - 1) / 2], the dots of each two features."""
    count = values.shape[1]
    left, right = torch.triu_indices(count, count, offset=1, device=values.device)
    return torch.bmm(values, values.transpose(1, 2)).flatten(1).index_select(1, left * count + right)


def _layers(sizes: Sequence[int], *, ends_linear: bool) -> nn.Sequential:
    """Linear layers and ReLUs in turn; with `ends_linear` beginning and ending so that the last is a linear one."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        linear = nn.Linear(before, after)
        layers += [nn.ReLU(), linear] if ends_linear else [linear, nn.ReLU()]
    return nn.Sequential(*layers)
