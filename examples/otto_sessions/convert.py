"""OTTO's JSON lines as Parquet to train on: one file per day, the sessions of a day side by side."""

from __future__ import annotations

import os
import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightning_intune.dedup.etl.cluster import ClusterJob, cluster
from lightning_intune.errors import ConfigError

HISTORY = 20
"""Items before an event that the model sees."""
VALIDATION_DAYS = 7
_DAY_MS = 86_400_000


def convert(source: Path, folder: Path, *, row_group_rows: int = 8_192) -> Path:
    """`folder` with `train/` and `val/`, made at the first call: the last seven days of `source` validate.

    Nothing is held in memory but a row group, and `folder` is whole or absent.
    ConfigError for data of one week or less.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    days, scratch = folder.parent / f"{folder.name}.days", folder.parent / f"{folder.name}.part"
    cluster(
        ClusterJob(
            paths=[str(source)],
            output=str(days),
            session="session",
            time="ts",
            history=HISTORY,
            row_group_rows=row_group_rows,
        )
    )
    files = sorted(days.glob("*.parquet"))
    first_val = _day(files[-1]) - timedelta(days=VALIDATION_DAYS - 1)
    if _day(files[0]) >= first_val:
        shutil.rmtree(days)
        raise ConfigError(
            f"'{source}' holds {len(files)} days, and {VALIDATION_DAYS} are to validate. Give a longer part."
        )
    shutil.rmtree(scratch, ignore_errors=True)
    for file in files:
        part = scratch / ("val" if _day(file) >= first_val else "train")
        part.mkdir(parents=True, exist_ok=True)
        _label(file, part / file.name)
    os.rename(scratch, folder)
    shutil.rmtree(days)
    return folder


def _day(file: Path) -> date:
    with pq.ParquetFile(file) as opened:
        first_ms = opened.read_row_group(0, columns=["ts"])["ts"][0].as_py()
    return date(1970, 1, 1) + timedelta(days=int(first_ms) // _DAY_MS)


def _label(source: Path, target: Path) -> None:
    """A copy with `wants` (1: a cart or an order) and `day_share` (the time of day, 0 to 1)."""
    with pq.ParquetFile(source) as rows:
        writer: pq.ParquetWriter | None = None
        for group in range(rows.num_row_groups):
            table = rows.read_row_group(group)
            wants = pc.not_equal(table["type"], "clicks").cast(pa.int8())
            day_share = pa.array((table["ts"].to_numpy() % _DAY_MS / _DAY_MS).astype("float32"))
            table = table.append_column("wants", wants).append_column("day_share", day_share)
            # Lists of ids are half the size without a dictionary where sessions stand together.
            writer = writer or pq.ParquetWriter(target, table.schema, compression="zstd", use_dictionary=["type"])
            writer.write_table(table)
        if writer is not None:
            writer.close()
