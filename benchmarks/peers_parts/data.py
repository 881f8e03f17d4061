"""The workloads' files: sessions of synthetic rows, written once and kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_BATCH = 4096
NUM_SESSION_FEATURES, NUM_ITEM_FEATURES, NUM_DENSE = 20, 6, 13
_BATCHES_PER_FILE = 8
_SESSION_MEAN_ROWS = 17  # OTTO's mean number of events per session
_WORDS = ("red", "blue", "cotton", "summer", "dress", "shirt.", "shoes,", "leather", "bag", "new", "sale", "classic")


def folder_of(num_rows: int) -> Path:
    """The folder with `num_rows` rows; written where it is not there yet, complete or not at all."""
    folder = Path(tempfile.gettempdir()) / f"lightning_intune_peers_{num_rows}_v1"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        ready = Path(unfinished) / "ready"
        ready.mkdir()
        _write(ready, num_rows)
        ready.rename(folder)
    return folder


def _write(folder: Path, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    session = np.repeat(np.arange(num_rows), rng.geometric(1 / _SESSION_MEAN_ROWS, num_rows))[:num_rows]
    means = np.linspace(5, 50, NUM_SESSION_FEATURES)
    num_files = -(-num_rows // (ROWS_PER_BATCH * _BATCHES_PER_FILE))
    for number in range(num_files):
        rows = session[number * ROWS_PER_BATCH * _BATCHES_PER_FILE :][: ROWS_PER_BATCH * _BATCHES_PER_FILE]
        pq.write_table(
            _table(rng, rows, means),
            folder / f"part-{number:04d}.parquet",
            row_group_size=ROWS_PER_BATCH,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,  # half the size and time for list columns of ids that seldom repeat in a page
        )


def _table(rng: np.random.Generator, session: npt.NDArray[np.int64], means: npt.NDArray[np.float64]) -> pa.Table:
    # A user's history stays within the session: each row of a session repeats its lists.
    first = np.concatenate([[True], session[1:] != session[:-1]])
    which = np.cumsum(first) - 1
    columns: dict[str, pa.Array] = {"session_id": pa.array(session)}
    for number, mean in enumerate(means):
        lengths = rng.poisson(mean, int(first.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.zipf(1.3, int(offsets[-1])) % 1_000_000
        unique = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids.astype(np.int64)))
        columns[f"session_{number:02d}"] = unique.take(pa.array(which))
    for number in range(NUM_ITEM_FEATURES):
        columns[f"item_{number}"] = pa.array(rng.integers(0, 500_000, len(session)))
    for number in range(NUM_DENSE):
        columns[f"dense_{number:02d}"] = pa.array(rng.lognormal(0, 1, len(session)).astype(np.float32))
    columns["text"] = pa.array([" ".join(rng.choice(_WORDS, 12)) for _ in range(len(session))])
    columns["label"] = pa.array((rng.random(len(session)) < 0.03).astype(np.float32))
    return pa.table(columns)
