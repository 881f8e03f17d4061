"""The batch that Lightning moves, and its sparse part, in pure torch: TorchRec is needed only for `to_kjt`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
import torch.utils._pytree as pytree  # private by name only: torch documents no other registry
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor


@final
class KeyedJagged:
    """F jagged features of B rows: `values` [N] one feature after the other, `lengths` [F * B] likewise.

    The layout and the method names are those of TorchRec's `KeyedJaggedTensor`, so that code reading one reads the
    other. Treat it as a value: methods return new objects and share memory.

    >>> jagged = KeyedJagged(["a", "b"], torch.tensor([7, 8, 9]), torch.tensor([2, 0, 0, 1], dtype=torch.int32))
    >>> jagged["a"], jagged.stride()
    ((tensor([7, 8]), tensor([2, 0], dtype=torch.int32)), 2)
    """

    __slots__ = ("_keys", "_lengths", "_values")

    def __init__(self, keys: Sequence[str], values: Tensor, lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = tuple(keys), values, lengths
        if len(lengths) % max(1, len(self._keys)) or (not self._keys and len(lengths)):
            raise ValueError(f"{len(lengths)} lengths do not divide over {len(self._keys)} keys")

    def keys(self) -> list[str]:
        """The features' names, in the order of the layout."""
        return list(self._keys)

    def values(self) -> Tensor:
        """[N], all features' values; their count is the sum of `lengths`."""
        return self._values

    def lengths(self) -> Tensor:
        """[F * B] int32, values per feature and row."""
        return self._lengths

    def offsets(self) -> Tensor:
        """[F * B + 1] int64, where each feature's row begins in `values`."""
        zero = self._lengths.new_zeros(1, dtype=torch.int64)
        return torch.cat([zero, torch.cumsum(self._lengths, 0, dtype=torch.int64)])

    def stride(self) -> int:
        """B, the rows of the batch."""
        return len(self._lengths) // len(self._keys) if self._keys else 0

    def __getitem__(self, key: str) -> tuple[Tensor, Tensor]:
        """One feature's values [n] and lengths [B]; KeyError names the keys there are. It syncs with the device."""
        if key not in self._keys:
            raise KeyError(f"'{key}' is not among the keys {list(self._keys)}")
        index, rows = self._keys.index(key), self.stride()
        lengths = self._lengths[index * rows : (index + 1) * rows]
        begin = int(self._lengths[: index * rows].sum())
        return self._values[begin : begin + int(lengths.sum())], lengths

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self._values.nbytes + self._lengths.nbytes

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> KeyedJagged:
        """The same on `device`; with `non_blocking` the copy of pinned memory overlaps with the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> KeyedJagged:
        """A copy in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has done what was asked of it so far."""
        self._values.record_stream(stream)
        self._lengths.record_stream(stream)

    def to_kjt(self) -> KeyedJaggedTensor:
        """TorchRec's type, sharing the memory. ConfigError where TorchRec cannot be imported."""
        from lightning_intune.dedup.torchrec_types import to_kjt

        return to_kjt(self, None)

    def _map(self, function: Callable[[Tensor], Tensor]) -> KeyedJagged:
        return KeyedJagged(self._keys, function(self._values), function(self._lengths))

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyedJagged, (self._keys, self._values, self._lengths)

    def __repr__(self) -> str:
        return f"KeyedJagged(keys={list(self._keys)}, values={_shape(self._values)}, stride={self.stride()})"


@final
@dataclass(eq=False, kw_only=True)
class Batch:
    """B samples, ready for a model. Lightning, `pytree` and `pickle` take it as it is.

    Treat it as frozen, and make others with `dataclasses.replace`; it is not only because Lightning, whose plugins for
    `bf16-true` and the like convert a copy's tensors in place, refuses frozen dataclasses. The tensors are its owner's.
    """

    dense: Tensor
    """[B, D] float32."""
    sparse: KeyedJagged | InverseKeyedJaggedTensor
    """F keys of stride B."""
    labels: Tensor
    """[B, L] float32."""
    weights: Tensor | None = None
    """[B] float32, 0 or more; None: every sample counts alike."""
    loss_scale: Tensor | None = None
    """[] float32: where ranks' counts may differ, what the (weighted) sum of losses is multiplied by, so that DDP's
    mean over the ranks is the global batch's mean; see `lightning_intune.balance.mean_loss`. None: take the mean."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        weights = 0 if self.weights is None else self.weights.nbytes
        return self.dense.nbytes + self.sparse.nbytes + self.labels.nbytes + weights

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """The same on `device`; with `non_blocking` the copy of pinned memory overlaps with the host."""
        return self._map(
            lambda tensor: tensor.to(device, non_blocking=non_blocking), self.sparse.to(device, non_blocking)
        )

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return self._map(Tensor.pin_memory, self.sparse.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until `stream` has done what was asked of it so far (TorchRec's pipelines ask for it)."""
        self.sparse.record_stream(stream)
        for tensor in (self.dense, self.labels, self.weights, self.loss_scale):
            if tensor is not None:
                tensor.record_stream(stream)

    def _map(self, function: Callable[[Tensor], Tensor], sparse: KeyedJagged | InverseKeyedJaggedTensor) -> Batch:
        weights = None if self.weights is None else function(self.weights)
        scale = None if self.loss_scale is None else function(self.loss_scale)
        labels = function(self.labels)
        return Batch(dense=function(self.dense), sparse=sparse, labels=labels, weights=weights, loss_scale=scale)

    def __repr__(self) -> str:
        weights = "None" if self.weights is None else _shape(self.weights)
        parts = f"dense={_shape(self.dense)}, sparse={self.sparse!r}, labels={_shape(self.labels)}, weights={weights}"
        return f"Batch({parts})"


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _flatten_jagged(jagged: KeyedJagged) -> tuple[list[Any], tuple[str, ...]]:
    return [jagged.values(), jagged.lengths()], tuple(jagged.keys())


def _unflatten_jagged(leaves: Any, keys: Any) -> KeyedJagged:
    jagged = object.__new__(KeyedJagged)  # unchecked: pytree fills the shape with non-tensors too
    jagged._keys, (jagged._values, jagged._lengths) = keys, leaves  # pyright: ignore[reportPrivateUsage]
    return jagged


def _flatten_batch(batch: Batch) -> tuple[list[Any], None]:
    return [batch.dense, batch.sparse, batch.labels, batch.weights, batch.loss_scale], None


def _unflatten_batch(leaves: Any, _: None) -> Batch:
    dense, sparse, labels, weights, loss_scale = leaves
    return Batch(dense=dense, sparse=sparse, labels=labels, weights=weights, loss_scale=loss_scale)


pytree.register_pytree_node(
    KeyedJagged, _flatten_jagged, _unflatten_jagged, serialized_type_name="lightning_intune.KeyedJagged"
)
pytree.register_pytree_node(Batch, _flatten_batch, _unflatten_batch, serialized_type_name="lightning_intune.Batch")
