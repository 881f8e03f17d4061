"""What both models see of an impression: the features of examples/open_bandit, each in the form a model wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_intune.config import Schema, SparseFeature
from lightning_intune.flow import fit_boundaries

NUMBERS = ("item_feature_0", "hour", "position")
CATEGORIES = ("item", "campaign", *(f"user_feature_{i}" for i in range(4)), *(f"item_feature_{i}" for i in range(1, 4)))


def quantised(files: Sequence[Path], num_bins: int = 32) -> Schema:
    """Numbers in bins of equal counts over `files`, categories hashed; the batch's one-hot input, as places of ones.

    The boundaries come from one pass through the flow, the binning is done in its `transform` stage.
    """
    bins = fit_boundaries([str(file) for file in files], NUMBERS, num_bins)
    return Schema(
        sparse=[
            *(SparseFeature(name=name, transform="bucket", boundaries=bins[name]) for name in NUMBERS),
            *(SparseFeature(name=name, num_embeddings=1024 if name == "item" else 128) for name in CATEGORIES),
        ],
        labels=["click"],
    )
