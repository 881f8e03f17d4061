"""Deduplicated batches, from storage to lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_intune.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_intune.dedup.dlrm import DedupDlrm as DedupDlrm
    from lightning_intune.dedup.features import DedupBatch as DedupBatch
    from lightning_intune.dedup.features import DedupFeatures as DedupFeatures
    from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor as InverseKeyedJaggedTensor
    from lightning_intune.dedup.jagged import Batch as Batch
    from lightning_intune.dedup.jagged import KeyedJagged as KeyedJagged
    from lightning_intune.dedup.lookup import IkjtEmbeddingBagCollection as IkjtEmbeddingBagCollection
    from lightning_intune.dedup.lookup import IkjtEmbeddingCollection as IkjtEmbeddingCollection
    from lightning_intune.dedup.measure import plan_for as plan_for
    from lightning_intune.dedup.plan import DedupPlan as DedupPlan
    from lightning_intune.dedup.plan import FeatureStats as FeatureStats
    from lightning_intune.dedup.sequence_model import DedupSequenceModel as DedupSequenceModel
    from lightning_intune.dedup.session_batches import SessionBatches as SessionBatches
    from lightning_intune.dedup.sessions import SessionsToBatch as SessionsToBatch
    from lightning_intune.dedup.transform import DedupSparse as DedupSparse

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Batch": "lightning_intune.dedup.jagged",
        "DedupBatch": "lightning_intune.dedup.features",
        "DedupFeatures": "lightning_intune.dedup.features",
        "DedupPlan": "lightning_intune.dedup.plan",
        "DedupSparse": "lightning_intune.dedup.transform",
        "FeatureStats": "lightning_intune.dedup.plan",
        "InverseKeyedJaggedTensor": "lightning_intune.dedup.ikjt",
        "DedupDlrm": "lightning_intune.dedup.dlrm",
        "DedupSequenceModel": "lightning_intune.dedup.sequence_model",
        "IkjtEmbeddingBagCollection": "lightning_intune.dedup.lookup",
        "IkjtEmbeddingCollection": "lightning_intune.dedup.lookup",
        "KeyedJagged": "lightning_intune.dedup.jagged",
        "SessionBatches": "lightning_intune.dedup.session_batches",
        "SessionsToBatch": "lightning_intune.dedup.sessions",
        "plan_for": "lightning_intune.dedup.measure",
    },
)
