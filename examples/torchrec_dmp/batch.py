"""The batch in the types that TorchRec's pipelines move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from lightning_intune.dedup import Batch, InverseKeyedJaggedTensor


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchRecBatch(Pipelineable):
    """B samples; sharded modules take `sparse` from it by its name, which is how the pipeline finds their input."""

    dense: Tensor
    """[B, D] float32."""
    sparse: KeyedJaggedTensor
    """Deduplicated where the keys' strides vary: `inverse_indices` say which stored row each of the B is."""
    labels: Tensor
    """[B, 1] float32."""
    weights: Tensor
    """[B] float32; 0 for a batch that was made up, so that all ranks take as many steps."""

    def to(self, device: torch.device, non_blocking: bool = False) -> TorchRecBatch:
        """The same on `device`; the pipeline's copy."""
        return TorchRecBatch(
            dense=self.dense.to(device, non_blocking=non_blocking),
            sparse=self.sparse.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has done what was asked of it so far."""
        self.sparse.record_stream(stream)
        for tensor in (self.dense, self.labels, self.weights):
            tensor.record_stream(stream)


def to_torchrec(batch: Batch) -> TorchRecBatch:
    """`batch` with its stored rows as they are: repeats are neither expanded, nor sent to the ranks that own tables."""
    is_deduplicated = isinstance(batch.sparse, InverseKeyedJaggedTensor)
    return TorchRecBatch(
        dense=batch.dense,
        sparse=batch.sparse.to_vbe_kjt() if is_deduplicated else batch.sparse.to_kjt(),
        labels=batch.labels,
        weights=torch.ones(len(batch)) if batch.weights is None else batch.weights,
    )


class Feed(Iterator[TorchRecBatch]):
    """Lightning's `dataloader_iter` as TorchRec wants it: batches alone, and one and the same object all epoch."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __next__(self) -> TorchRecBatch:
        batch, _, _ = next(self.source)  # Lightning adds the numbers of batch and loader
        return to_torchrec(batch)
