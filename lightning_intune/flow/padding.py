"""Steps that count for nothing, for a rank that has run out of items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lightning_intune.dedup.jagged import Batch


def zero_weight(item: Any) -> Any:
    """The default padding: a copy of a `Batch` in which every sample weighs nothing. TypeError for another type.

    >>> from lightning_intune.dedup.jagged import KeyedJagged
    >>> empty = KeyedJagged([], torch.empty(0), torch.empty(0))
    >>> zero_weight(Batch(dense=torch.ones(2, 1), sparse=empty, labels=torch.ones(2, 1))).weights
    tensor([0., 0.])
    """
    if not isinstance(item, Batch):
        raise TypeError(
            f"EqualSteps: how to pad with a {type(item).__name__} that weighs nothing is not known. Pass pad=, a "
            "function from an item to a copy that does not count in the loss, or use mode='drop'."
        )
    return replace(item, weights=torch.zeros(len(item)))
