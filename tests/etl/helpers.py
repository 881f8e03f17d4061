"""What the tests of `cluster` share: rows as multisets, and the rows of an output folder."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.dedup.etl.cluster import ClusterJob
from lightning_intune.dedup.etl.session_layout import unfold_sessions

ROOT = Path(__file__).parents[2]
OTTO = ROOT.parent / "shared" / "data" / "otto" / "train.jsonl"
LIMIT = 512 * 2**20


def multiset(rows: pa.Table) -> Counter[str]:
    return Counter(repr(_comparable(row)) for row in rows.to_pylist())


def _comparable(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: _comparable(value[key]) for key in sorted(value)}
    return [_comparable(part) for part in value] if isinstance(value, list) else value


def job(source: Path, output: Path, **options: Any) -> ClusterJob:
    defaults: dict[str, Any] = {"session": "session", "time": "ts", "memory_limit_bytes": LIMIT, "threads": 1}
    return ClusterJob(paths=[str(source)], output=str(output), **{**defaults, **options})


def rows_of(output: Path, session_columns: Any = None) -> pa.Table:
    """All rows in the order of the output; with `session_columns`, of the session layout."""
    tables = [pq.read_table(path) for path in sorted(output.glob("*.parquet"))]
    whole = pa.concat_tables(tables)
    return whole if session_columns is None else unfold_sessions(whole, session_columns)


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path
