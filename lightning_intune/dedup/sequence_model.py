"""Attention over a history: encoded once per stored row, then asked by every row's target item."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from lightning_intune.dedup.lookup import Features, IkjtEmbeddingCollection, expand
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from torchrec.modules.embedding_modules import EmbeddingCollection


@final
class DedupSequenceModel(nn.Module):
    """A transformer over the history and target attention over its outputs; plain and deduplicated batches alike.

    The encoder, nearly all of the work, runs on stored rows only. Its outputs are then asked by the target item of each
    row (as in Deep Interest Network, arXiv 1706.06978), and an MLP sees the answer, the target and `dense`. Within 1e-5
    of the plain batch's result, forward and backward, as long as `dropout` is 0: it draws once per stored row.

    `collection` has tables for the keys `history` and `target`, both of one width D. Histories beyond `max_length`
    are cut to their first values. Inputs: `dense` [B, num_dense], and the batch's sparse part, in which `target` has
    one value a row. Output: [B, 1] logits.
    """

    def __init__(
        self,
        collection: EmbeddingCollection,
        *,
        history: str,
        target: str,
        num_dense: int,
        max_length: int,
        num_heads: int = 4,
        num_layers: int = 2,
        hidden: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.lookup = IkjtEmbeddingCollection(collection)
        self.history, self.target, self.max_length = history, target, max_length
        dim = collection.embedding_dim()
        if max_length < 1 or dim % num_heads:
            raise ConfigError(
                f"DedupSequenceModel: max_length={max_length} and embeddings of {dim} for num_heads={num_heads}. Set "
                "max_length to 1 or more, and num_heads to a divisor of the width."
            )
        layer = nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        self.top = nn.Sequential(nn.Linear(2 * dim + num_dense, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, dense: Tensor, sparse: Features) -> Tensor:
        """[B, 1] logits."""
        rows = self.lookup(sparse, self.history)
        encoded, within = self._encode(*rows.padded(self._longest(rows.lengths)))
        target = self.lookup(sparse, self.target)
        asked = expand(target.values, target.inverse)
        if len(asked) != len(dense):
            raise ValueError(f"'{self.target}' has {len(asked)} values for {len(dense)} rows; it needs one a row")
        answer = _ask(asked, encoded, within, rows.inverse)
        return self.top(torch.cat([answer, asked, dense], dim=1))

    def _longest(self, lengths: Tensor) -> int:
        longest = int(lengths.max()) if len(lengths) else 1
        return max(1, longest)

    def _encode(self, padded: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        padded, within = padded[:, : self.max_length], within[:, : self.max_length]
        inputs = padded + self.position[: padded.shape[1]]
        if len(inputs) == 0:  # torch's attention cannot split no rows into heads
            return inputs, within
        # Attention over nothing is 0/0: an empty history attends to its first place, and nobody asks it.
        hidden = ~within
        hidden = torch.cat([hidden[:, :1] & within.any(dim=1, keepdim=True), hidden[:, 1:]], dim=1)
        return self.encoder(inputs, src_key_padding_mask=hidden), within


def _ask(asked: Tensor, encoded: Tensor, within: Tensor, inverse: Tensor | None) -> Tensor:
    """[B, D]: each row's softmax-weighted mean of its history's outputs; 0 for an empty history."""
    keys, open_places = expand(encoded.flatten(1), inverse).unflatten(1, encoded.shape[1:]), expand(within, inverse)
    scores = torch.bmm(keys, asked.unsqueeze(2)).squeeze(2) / math.sqrt(asked.shape[1])
    shares = torch.softmax(scores.masked_fill(~open_places, -1e9), dim=1) * open_places
    return torch.bmm(shares.unsqueeze(1), keys).squeeze(1)
