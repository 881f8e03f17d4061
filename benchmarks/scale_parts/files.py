"""What many files cost, and whether memory stays flat over many rows."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, ParquetSource, Rebatch
from lightning_intune.flow.transform import ToBatch

FILES = (1, 10, 100, 1_000, 10_000)
_BATCH_ROWS = 8192
_GROUP_ROWS = 65_536


def schema() -> Schema:
    """Narrow rows: two ids, two numbers, a label."""
    return Schema(
        dense=[DenseFeature(name=f"dense{number}") for number in range(2)],
        sparse=[SparseFeature(name=f"item{number}", num_embeddings=1 << 20) for number in range(2)],
        labels=["label"],
    )


def files(num_rows: int, counts: tuple[int, ...] = FILES) -> dict[str, dict[str, float]]:
    """By number of files the same rows are in: seconds to make the source, rows/s of one epoch, its CPU ms per file."""
    found: dict[str, dict[str, float]] = {}
    rows = _rows(num_rows)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            per_file = -(-num_rows // count)
            for number in range(count):
                pq.write_table(rows.slice(number * per_file, per_file), f"{folder}/{number:05d}.parquet")
            began_s = time.perf_counter()
            with _loader(folder, width=2) as loader:
                opened_s, cpu_s = time.perf_counter(), time.process_time()
                seen = sum(len(batch) for batch in loader)
                ended_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
            if seen != num_rows:
                raise RuntimeError(f"{count} files gave {seen} rows of {num_rows}")
            found[str(count)] = {
                "open_s": opened_s - began_s,
                "rows_per_s": num_rows / (ended_s - opened_s),
                "cpu_ms_per_file": cpu_s / count * 1e3,
            }
    return found


def streamed(num_rows: int) -> dict[str, Any]:
    """Rows streamed in one epoch over links to one file: rows/s, and MiB held after 1, 10, 50 and 100 % of them."""
    rows_per_file = min(num_rows, 1 << 20)
    count = -(-num_rows // rows_per_file)
    me, held = psutil.Process(), {}
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one"
        one.mkdir()
        pq.write_table(_rows(rows_per_file), one / "rows.parquet", row_group_size=_GROUP_ROWS)
        links = Path(folder) / "all"
        links.mkdir()
        for number in range(count):
            os.link(one / "rows.parquet", links / f"{number:05d}.parquet")
        with _loader(str(links), width=2) as loader:
            marks = [int(share * count * rows_per_file / 100) for share in (1, 10, 50, 100)]
            seen, began_s = 0, time.perf_counter()
            for batch in loader:
                seen += len(batch)
                while marks and seen >= marks[0]:
                    held[str(marks.pop(0))] = me.memory_info().rss / 2**20
            elapsed_s = time.perf_counter() - began_s
    least, most = min(held.values()), max(held.values())
    return {"rows": seen, "rows_per_s": seen / elapsed_s, "rss_mib": held, "rss_growth": most / least - 1}


def _rows(num_rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"dense{number}": rng.random(num_rows, np.float32) for number in range(2)}
    columns |= {f"item{number}": rng.integers(0, 1 << 20, num_rows) for number in range(2)}
    return pa.table(columns | {"label": rng.integers(0, 2, num_rows).astype(np.float32)})


def _loader(folder: str, *, width: int) -> ElasticLoader[Any]:
    source = ParquetSource(folder, columns=schema().columns)
    read = ElasticMapper(source, source.reader(), width, name="read")
    transform = ElasticMapper(Rebatch(read, _BATCH_ROWS), ToBatch(schema()), 1, name="transform")
    return ElasticLoader(ElasticPrefetcher(transform, 2))
