"""Sessions whose labels can be learnt, in both layouts with the same batches; and the functions that make batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from benchmarks.peers_parts.data import write_groups
from benchmarks.peers_parts.work import Read, places_of
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch, SessionsToBatch
from lightning_intune.dedup.etl.session_layout import fold_sessions, session_bounds
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, table
from lightning_intune.flow.transform import ToBatch

ROWS_PER_BATCH, NUM_DENSE, NUM_IDS = 2048, 13, 10_000
USER = tuple(f"user{number:02d}" for number in range(20))
ITEM = tuple(f"item{number}" for number in range(6))
SESSION_LEVEL = ("session", *USER)
VALIDATION_BATCHES = 8


def schema() -> Schema:
    """20 lists of the session of 5 to 50 ids, 6 ids and 13 numbers of the impression."""
    return Schema(
        dense=[DenseFeature(name=f"dense{number}") for number in range(NUM_DENSE)],
        sparse=[SparseFeature(name=name, num_embeddings=NUM_IDS + 1, transform="id") for name in (*USER, *ITEM)],
        labels=["label"],
    )


def folder_of(num_batches: int) -> Path:
    """The folder with so many batches to train on; written where it is not there yet, whole or not at all."""
    folder = Path(tempfile.gettempdir()) / f"lightning_intune_train_{num_batches}_v1"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        ready = Path(unfinished) / "ready"
        for split, count, seed in (("train", num_batches, 0), ("validation", VALIDATION_BATCHES, 1)):
            _write(ready / split, table(_spec(count * ROWS_PER_BATCH, seed)))
        ready.rename(folder)
    return folder


def _spec(num_rows: int, seed: int) -> SynthSpec:
    lengths = np.linspace(5, 50, len(USER))
    users = [
        SynthFeature(name=name, change=0.0, mean_length=float(length), num_ids=NUM_IDS)
        for name, length in zip(USER, lengths, strict=True)
    ]
    items = [SynthFeature(name=name, change=1.0, num_ids=NUM_IDS, weight=4.0) for name in ITEM]
    return SynthSpec(num_rows=num_rows, seed=seed, features=[*users, *items], num_dense=NUM_DENSE)


def _write(folder: Path, rows: pa.Table) -> None:
    batches = [rows.slice(begin, ROWS_PER_BATCH) for begin in range(0, rows.num_rows, ROWS_PER_BATCH)]
    folded = [fold_sessions(batch, session_bounds(batch.column("session")), SESSION_LEVEL) for batch in batches]
    for layout, groups in (("rows", batches), ("sessions", folded)):
        (folder / layout).mkdir(parents=True)
        write_groups(folder / layout / "part-0000.parquet", groups)


@final
class MakeBatch:
    """Batch number -> `Batch`, read and transformed: all of the work, for engines with one parallel stage."""

    def __init__(self, read: Read, transform: Callable[[pa.Table], Batch]) -> None:
        self.read, self.transform = read, transform

    def __call__(self, index: int) -> Batch:
        """Batch `index`."""
        return self.transform(self.read(index))


def make_batch(folder: Path, layout: str) -> MakeBatch:
    """The work for `folder/train` or `folder/validation`."""
    to_batch: Any = ToBatch(schema()) if layout == "rows" else SessionsToBatch(schema(), session_level=SESSION_LEVEL)
    return MakeBatch(Read(places_of(folder / layout), 0.0, ("session", "ts")), to_batch)


def order_of(num_batches: int, num_steps: int) -> list[int]:
    """The batches of a long run: one permutation after the other, the same for every engine."""
    rng = np.random.default_rng(0)
    passes = [rng.permutation(num_batches) for _ in range(-(-num_steps // num_batches))]
    return np.concatenate(passes)[:num_steps].tolist()
