"""The data flow: a graph of torchdata nodes whose stages can be resized while they run (DESIGN, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_intune.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_intune.flow.adapters.datapipe import from_datapipe as from_datapipe
    from lightning_intune.flow.agree import EqualSteps as EqualSteps
    from lightning_intune.flow.batch import Batch as Batch
    from lightning_intune.flow.batch import Rebatch as Rebatch
    from lightning_intune.flow.batch import Unbatch as Unbatch
    from lightning_intune.flow.device import PrefetchToDevice as PrefetchToDevice
    from lightning_intune.flow.elastic import ElasticMapper as ElasticMapper
    from lightning_intune.flow.elastic import ElasticPrefetcher as ElasticPrefetcher
    from lightning_intune.flow.filter import Filter as Filter
    from lightning_intune.flow.iterable import IterableSource as IterableSource
    from lightning_intune.flow.loader import ElasticLoader as ElasticLoader
    from lightning_intune.flow.mix import Mix as Mix
    from lightning_intune.flow.mix import Zip as Zip
    from lightning_intune.flow.node import Node as Node
    from lightning_intune.flow.on_error import OnError as OnError
    from lightning_intune.flow.on_error import retry as retry
    from lightning_intune.flow.on_error import skip as skip
    from lightning_intune.flow.pin import Pin as Pin
    from lightning_intune.flow.pin import PinMemory as PinMemory
    from lightning_intune.flow.quantiles import QuantileSketch as QuantileSketch
    from lightning_intune.flow.quantiles import fit_boundaries as fit_boundaries
    from lightning_intune.flow.repeat import Repeat as Repeat
    from lightning_intune.flow.row_shuffle import RowShuffle as RowShuffle
    from lightning_intune.flow.shuffle import Shuffle as Shuffle
    from lightning_intune.flow.source import ParquetSource as ParquetSource
    from lightning_intune.flow.take import Take as Take

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Batch": "lightning_intune.flow.batch",
        "ElasticLoader": "lightning_intune.flow.loader",
        "ElasticMapper": "lightning_intune.flow.elastic",
        "ElasticPrefetcher": "lightning_intune.flow.elastic",
        "EqualSteps": "lightning_intune.flow.agree",
        "Filter": "lightning_intune.flow.filter",
        "IterableSource": "lightning_intune.flow.iterable",
        "Mix": "lightning_intune.flow.mix",
        "Node": "lightning_intune.flow.node",
        "OnError": "lightning_intune.flow.on_error",
        "ParquetSource": "lightning_intune.flow.source",
        "Pin": "lightning_intune.flow.pin",
        "PinMemory": "lightning_intune.flow.pin",
        "PrefetchToDevice": "lightning_intune.flow.device",
        "QuantileSketch": "lightning_intune.flow.quantiles",
        "Rebatch": "lightning_intune.flow.batch",
        "Repeat": "lightning_intune.flow.repeat",
        "RowShuffle": "lightning_intune.flow.row_shuffle",
        "Shuffle": "lightning_intune.flow.shuffle",
        "Take": "lightning_intune.flow.take",
        "Unbatch": "lightning_intune.flow.batch",
        "Zip": "lightning_intune.flow.mix",
        "fit_boundaries": "lightning_intune.flow.quantiles",
        "from_datapipe": "lightning_intune.flow.adapters.datapipe",
        "retry": "lightning_intune.flow.on_error",
        "skip": "lightning_intune.flow.on_error",
    },
)
