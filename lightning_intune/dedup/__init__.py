"""Deduplicated batches, from storage to lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_intune.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor as InverseKeyedJaggedTensor
    from lightning_intune.dedup.jagged import Batch as Batch
    from lightning_intune.dedup.jagged import KeyedJagged as KeyedJagged
    from lightning_intune.dedup.plan import DedupPlan as DedupPlan
    from lightning_intune.dedup.plan import FeatureStats as FeatureStats

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Batch": "lightning_intune.dedup.jagged",
        "DedupPlan": "lightning_intune.dedup.plan",
        "FeatureStats": "lightning_intune.dedup.plan",
        "InverseKeyedJaggedTensor": "lightning_intune.dedup.ikjt",
        "KeyedJagged": "lightning_intune.dedup.jagged",
    },
)
