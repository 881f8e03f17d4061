"""Embeddings exchanged between ranks behind the compute, after FreeScale (arXiv 2604.24073)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_intune.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_intune.overlap.collection import OverlappedEmbeddingBagCollection as OverlappedEmbeddingBagCollection
    from lightning_intune.overlap.collection import OverlappedEmbeddingCollection as OverlappedEmbeddingCollection
    from lightning_intune.overlap.gloo import GlooTransport as GlooTransport
    from lightning_intune.overlap.host_ring import HostRingTransport as HostRingTransport
    from lightning_intune.overlap.link import Link as Link
    from lightning_intune.overlap.pipeline import OverlappedTrainPipeline as OverlappedTrainPipeline
    from lightning_intune.overlap.placement import Placement as Placement
    from lightning_intune.overlap.row_optimizer import SGD as SGD
    from lightning_intune.overlap.row_optimizer import Adagrad as Adagrad
    from lightning_intune.overlap.row_optimizer import Adam as Adam
    from lightning_intune.overlap.row_optimizer import RowOptimizer as RowOptimizer
    from lightning_intune.overlap.table import Table as Table
    from lightning_intune.overlap.transport import make_transport as make_transport

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "SGD": "lightning_intune.overlap.row_optimizer",
        "Adagrad": "lightning_intune.overlap.row_optimizer",
        "Adam": "lightning_intune.overlap.row_optimizer",
        "GlooTransport": "lightning_intune.overlap.gloo",
        "HostRingTransport": "lightning_intune.overlap.host_ring",
        "Link": "lightning_intune.overlap.link",
        "OverlappedEmbeddingBagCollection": "lightning_intune.overlap.collection",
        "OverlappedEmbeddingCollection": "lightning_intune.overlap.collection",
        "OverlappedTrainPipeline": "lightning_intune.overlap.pipeline",
        "Placement": "lightning_intune.overlap.placement",
        "RowOptimizer": "lightning_intune.overlap.row_optimizer",
        "Table": "lightning_intune.overlap.table",
        "make_transport": "lightning_intune.overlap.transport",
    },
)
