"""From Parquet to batches: CPU seconds per row of the row layout, plain and deduplicated, and of the session layout."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.dedup_parts.data import BATCH_ROWS, FEATURES, ITEM, SESSION_LEVEL, plan, schema
from lightning_intune.dedup import Batch, DedupPlan, DedupSparse, SessionsToBatch, plan_for
from lightning_intune.flow import ParquetSource
from lightning_intune.flow.transform import ToBatch

ToOne = Callable[[pa.Table], Batch]


def rows_per_cpu_s(path: Path, to_batch: ToOne, table_rows: int) -> float:
    """Read the file row group by row group and make batches of it, all in this thread."""
    source = ParquetSource(str(path), columns=schema().columns)
    read = source.reader(dictionaries=True)
    num_rows, began_s = 0, time.thread_time()
    for group in source:
        table = read(group)
        for begin in range(0, table.num_rows, table_rows):
            num_rows += len(to_batch(table.slice(begin, table_rows)))
    return num_rows / (time.thread_time() - began_s)


def functions(paths: dict[str, Path]) -> tuple[dict[str, ToOne], DedupPlan]:
    """The three ways to a batch."""
    rows = pq.read_table(paths["clustered"], columns=["session", *FEATURES])
    chosen = plan(rows)
    own = plan_for(rows.slice(0, 20_000), [name for name in FEATURES if name not in SESSION_LEVEL])
    made: dict[str, ToOne] = {
        "plain": ToBatch(schema()),
        "ikjt": ToBatch(schema(), sparse=DedupSparse(schema().sparse, chosen)),
        "sessions": SessionsToBatch(schema(), session_level=SESSION_LEVEL, plan=own),
    }
    assert not set(ITEM) & set(chosen.features), "an item that is always new is not worth a search"
    return made, chosen


def preprocess(paths: dict[str, Path], session_mean: float, runs: int) -> dict[str, list[float]]:
    """Paired ratios to plain shuffled rows, of `clustered` (plain too), `ikjt` and `sessions`; plain rows a second."""
    made, _ = functions(paths)
    ways = {"plain": "shuffled", "clustered": "clustered", "ikjt": "clustered", "sessions": "sessions"}
    per_table = dict.fromkeys(ways, BATCH_ROWS) | {"sessions": max(1, round(BATCH_ROWS / session_mean))}
    ratios: dict[str, list[float]] = {"clustered": [], "ikjt": [], "sessions": []}
    plain: list[float] = []
    for run in range(runs + 1):
        names = list(ways) if run % 2 else list(reversed(ways))
        rate = {
            name: rows_per_cpu_s(paths[ways[name]], made.get(name, made["plain"]), per_table[name]) for name in names
        }
        if run:  # the first warms caches and compiles
            plain.append(rate["plain"])
            for name, values in ratios.items():
                values.append(rate[name] / rate["plain"])
    return {**ratios, "plain_rows_per_cpu_s": plain}


def batches(paths: dict[str, Path], count: int, batch_rows: int) -> tuple[list[Batch], list[Batch]]:
    """The first batches of the clustered file, plain and deduplicated by the plan."""
    made, _ = functions(paths)
    table = pq.read_table(paths["clustered"], columns=list(schema().columns))
    slices = [table.slice(begin * batch_rows, batch_rows) for begin in range(count)]
    return [made["plain"](one) for one in slices], [made["ikjt"](one) for one in slices]


def storage(paths: dict[str, Path]) -> dict[str, Any]:
    """Bytes of the shuffled file over those of the others."""
    shuffled = paths["shuffled"].stat().st_size
    return {name: shuffled / paths[name].stat().st_size for name in ("clustered", "sessions")}
