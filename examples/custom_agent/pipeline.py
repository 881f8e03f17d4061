"""A live pipeline: blocks from a slow disk, decompressed, prefetched, taken by a trainer."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats

DISK_S = 0.01
"""What the disk takes to answer; any number of requests may wait at a time."""
_BLOCKS = [zlib.compress(np.random.default_rng(seed).integers(0, 9, 60_000, np.uint8).tobytes()) for seed in range(8)]


def read(number: int) -> bytes:
    """A block of the disk."""
    time.sleep(DISK_S)
    return _BLOCKS[number % len(_BLOCKS)]


def unpack(block: bytes) -> npt.NDArray[np.float32]:
    """A batch, one sample [1, 60000]."""
    return np.frombuffer(zlib.decompress(block), np.uint8).astype(np.float32)[None]


@final
class LivePipeline:
    """What an environment needs: handles, meters, and a way to take one more batch. A context manager."""

    def __init__(self, *, num_items: int = 1_000_000, step_s: float = 0.0) -> None:
        blocks = ElasticMapper(IterableSource(range(num_items)), read, 1, name="read", max_workers=32)
        batches = ElasticMapper(blocks, unpack, 1, name="unpack", max_workers=32)
        self._loader = ElasticLoader(ElasticPrefetcher(batches, 2), batch_size=1)
        self._batches, self._step_s = iter(self._loader), step_s

    @property
    def knobs(self) -> Sequence[Knob]:
        """One a stage."""
        return self._loader.knobs

    def read(self) -> FlowStats:
        """Meters since the start."""
        return self._loader.stats()

    def advance(self) -> None:
        """One training step."""
        next(self._batches)
        if self._step_s > 0:
            time.sleep(self._step_s)

    def __enter__(self) -> LivePipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.shutdown()
