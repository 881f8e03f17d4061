"""To TorchRec's `KeyedJaggedTensor` and back, with and without `inverse_indices`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_intune.dedup.groups import GroupShape
from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def keyed_jagged_tensor() -> type[KeyedJaggedTensor]:
    """TorchRec's class; ConfigError where it cannot be imported."""
    try:
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
    except (ImportError, OSError) as error:  # an fbgemm of another torch shows as OSError
        raise ConfigError(
            f"to_kjt: TorchRec cannot be imported ({error}). Install `lightning-intune[torchrec]`, with the "
            "fbgemm-gpu or fbgemm-gpu-cpu that belongs to this torch."
        ) from error
    return KeyedJaggedTensor


def to_kjt(jagged: KeyedJagged, weights: Tensor | None) -> KeyedJaggedTensor:
    """All rows, as `InverseKeyedJaggedTensor.to_kjt` says."""
    return keyed_jagged_tensor()(keys=jagged.keys(), values=jagged.values(), lengths=jagged.lengths(), weights=weights)


def to_vbe_kjt(ikjt: InverseKeyedJaggedTensor) -> KeyedJaggedTensor:
    """The stored rows, as `InverseKeyedJaggedTensor.to_vbe_kjt` says; keys stand group by group."""
    kind = keyed_jagged_tensor()
    parts = [ikjt.unique(group) for group in range(len(ikjt.shapes()))]
    keys = [key for shape in ikjt.shapes() for key in shape.keys]
    weights = [part.weights for part in parts if part.weights is not None]
    inverse = torch.stack([ikjt.inverse(key) for key in keys]) if keys else ikjt.inverse_entries()
    return kind(
        keys=keys,
        values=torch.cat([part.jagged.values() for part in parts]) if parts else ikjt.values(),
        lengths=ikjt.lengths(),
        weights=torch.cat(weights) if weights else None,
        stride_per_key_per_rank=[[shape.num_rows] for shape in ikjt.shapes() for _ in shape.keys],
        inverse_indices=(keys, inverse),
    )


def from_kjt(kjt: KeyedJaggedTensor, groups: Sequence[Sequence[str]] | None) -> InverseKeyedJaggedTensor:
    """As `InverseKeyedJaggedTensor.from_kjt` says."""
    if kjt.inverse_indices_or_none() is not None:
        return _from_vbe(kjt)
    if kjt.variable_stride_per_key():
        raise ConfigError(
            "from_kjt: the strides of its keys vary and it has no inverse_indices, so nobody knows which row of the "
            "batch a stored one is. `permute`, `split` and `flatten_lengths` of TorchRec drop them: convert before."
        )
    keys = list(kjt.keys())
    jagged = KeyedJagged(keys, kjt.values(), kjt.lengths())
    every = [[key] for key in keys] if groups is None else groups
    return InverseKeyedJaggedTensor.from_jagged(jagged, every, weights=kjt.weights_or_none())


def _from_vbe(kjt: KeyedJaggedTensor) -> InverseKeyedJaggedTensor:
    keys, entry = list(kjt.keys()), kjt.inverse_indices()
    named, inverse = list(entry[0]), entry[1]
    strides = [sum(strides) for strides in kjt.stride_per_key_per_rank()]
    shapes: list[GroupShape] = []
    inverses: list[Tensor] = []
    for key, stride, count in zip(keys, strides, kjt.length_per_key(), strict=True):
        own = inverse[named.index(key)]
        same = bool(shapes) and shapes[-1].num_rows == stride and torch.equal(inverses[-1], own)
        if same:  # neighbours with one inverse were one group
            last = shapes.pop()
            shapes.append(
                GroupShape(keys=(*last.keys, key), num_rows=stride, num_values=(*last.num_values, int(count)))
            )
        else:
            shapes.append(GroupShape(keys=(key,), num_rows=stride, num_values=(int(count),)))
            inverses.append(own)
    return InverseKeyedJaggedTensor(
        shapes,
        kjt.values(),
        kjt.lengths(),
        torch.cat(inverses).long() if inverses else inverse.reshape(-1).long(),
        stride=int(inverse.shape[1]) if inverse.dim() == 2 else 0,
        keys=keys,
        weights=kjt.weights_or_none(),
    )
