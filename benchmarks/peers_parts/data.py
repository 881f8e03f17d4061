"""The workloads' files: sessions of synthetic rows in two layouts with the same batches, written once and kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.dedup.etl.session_layout import fold_sessions, session_bounds

ROWS_PER_BATCH = 4096
NUM_SESSION_FEATURES, NUM_ITEM_FEATURES, NUM_DENSE = 20, 6, 13
_BATCHES_PER_FILE = 8
_SESSION_MEAN_ROWS = 17  # OTTO's mean number of events per session
_WORDS = ("red", "blue", "cotton", "summer", "dress", "shirt.", "shoes,", "leather", "bag", "new", "sale", "classic")


def folder_of(num_rows: int) -> Path:
    """The folder with `num_rows` rows, as `rows` and as `sessions`; written where it is not there yet, whole or not.

    Row group i of either holds batch i: one row per impression, or one per session; a session that a batch's end cuts
    is two. Both have what reads fastest of zstd, LZ4 and no compression with and without dictionaries, among those
    that are not several times as large: LZ4 without dictionaries (CPU ms to read a batch: rows 14.3 against 20.0 with
    zstd-1, sessions 2.9 against 4.5).
    """
    folder = Path(tempfile.gettempdir()) / f"lightning_intune_peers_{num_rows}_v2"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        ready = Path(unfinished) / "ready"
        ready.mkdir()
        write(ready, num_rows)
        ready.rename(folder)
    return folder


def write(folder: Path, num_rows: int) -> None:
    """Both layouts, in `folder`."""
    rng = np.random.default_rng(0)
    session = np.repeat(np.arange(num_rows), rng.geometric(1 / _SESSION_MEAN_ROWS, num_rows))[:num_rows]
    means = np.linspace(5, 50, NUM_SESSION_FEATURES)
    rows_per_file = ROWS_PER_BATCH * _BATCHES_PER_FILE
    for layout in ("rows", "sessions"):
        (folder / layout).mkdir()
    for number, begin in enumerate(range(0, num_rows, rows_per_file)):
        table = _table(rng, session[begin : begin + rows_per_file], means)
        batches = [table.slice(start, ROWS_PER_BATCH) for start in range(0, len(table), ROWS_PER_BATCH)]
        write_groups(folder / "rows" / f"part-{number:04d}.parquet", batches)
        write_groups(folder / "sessions" / f"part-{number:04d}.parquet", [_folded(batch) for batch in batches])


def write_groups(path: Path, groups: list[pa.Table]) -> None:
    """One row group per table."""
    with pq.ParquetWriter(path, groups[0].schema, compression="lz4", use_dictionary=False) as file:
        for group in groups:
            file.write_table(group)


def _folded(batch: pa.Table) -> pa.Table:
    bounds = session_bounds(batch.column("session_id"))
    return fold_sessions(batch, bounds, [name for name in batch.column_names if name.startswith("session")])


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
