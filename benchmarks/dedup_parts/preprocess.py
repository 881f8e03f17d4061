"""From Parquet to batches: CPU seconds per row of the row layout, plain and deduplicated, and of the session layout.

Every side reads the same rows and makes the same features of them, with the same functions: those of
`schema(hash_only=False)`, or with `hash_only` ids and words hashed into their tables' rows and nothing else. There
decoding Parquet dominates, which no search for repeats in decoded rows can spare.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.dedup_parts.data import BATCH_ROWS, FEATURES, ITEM, SESSION_LEVEL, plan, schema, with_pairs
from lightning_intune.dedup import Batch, DedupSparse, SessionsToBatch
from lightning_intune.flow import ParquetSource
from lightning_intune.flow.transform import ToBatch

ToOne = Callable[[pa.Table], Batch]


def cpu_s_per_row(path: Path, to_batch: ToOne, table_rows: int) -> float:
    """Read the file row group by row group and make batches of it, all in this thread."""
    source = ParquetSource(str(path), columns=schema().columns)
    read = source.reader(dictionaries=True)
    num_rows, began_s = 0, time.thread_time()
    for group in source:
        table = read(group)
        for begin in range(0, table.num_rows, table_rows):
            num_rows += len(to_batch(table.slice(begin, table_rows)))
    return (time.thread_time() - began_s) / num_rows


def functions(paths: dict[str, Path], *, hash_only: bool) -> dict[str, ToOne]:
    """The three ways to a batch, all of the same features."""
    rows = pq.read_table(paths["clustered"], columns=["session", *FEATURES])
    chosen, own = plan(rows), plan(rows, [name for name in FEATURES if name not in SESSION_LEVEL], None)
    assert not set(ITEM) & set(chosen.features), "an item that is always new is not worth a search"
    if not hash_only:
        chosen, own = with_pairs(chosen), with_pairs(own)
    wanted = schema(hash_only=hash_only)
    return {
        "plain": ToBatch(wanted),
        "ikjt": ToBatch(wanted, sparse=DedupSparse(wanted.sparse, chosen)),
        "sessions": SessionsToBatch(wanted, session_level=SESSION_LEVEL, plan=own),
    }


def preprocess(paths: dict[str, Path], session_mean: float, runs: int, *, hash_only: bool) -> dict[str, list[float]]:
    """Paired ratios to plain shuffled rows, of `clustered` (plain too), `ikjt` and `sessions`; plain rows a second."""
    made = functions(paths, hash_only=hash_only)
    ways = {"plain": "shuffled", "clustered": "clustered", "ikjt": "clustered", "sessions": "sessions"}
    per_table = dict.fromkeys(ways, BATCH_ROWS) | {"sessions": max(1, round(BATCH_ROWS / session_mean))}
    ratios: dict[str, list[float]] = {"clustered": [], "ikjt": [], "sessions": []}
    plain: list[float] = []
    for run in range(runs + 1):
        names = list(ways) if run % 2 else list(reversed(ways))
        took_s = {
            name: cpu_s_per_row(paths[ways[name]], made.get(name, made["plain"]), per_table[name]) for name in names
        }
        if run:  # the first warms caches and compiles
            plain.append(1 / took_s["plain"])
            for name, values in ratios.items():
                values.append(took_s["plain"] / took_s[name])
    return {**ratios, "plain_rows_per_cpu_s": plain}


def cost_where_nothing_repeats(paths: dict[str, Path], runs: int) -> dict[str, list[float]]:
    """CPU of deduplication over none, pair by pair, for S = 1: `ikjt` from table to batch, `sessions` with the read.

    The two of a pair follow one another within milliseconds, in turns, so that a busy machine disturbs both. Both ways
    of `ikjt` read the same table, so its share of the whole is smaller still.
    """
    made, found = functions(paths, hash_only=False), {"ikjt": list[float](), "sessions": list[float]()}
    sources = {name: ParquetSource(str(paths[name]), columns=schema().columns) for name in ("clustered", "sessions")}
    groups = {name: list(source) for name, source in sources.items()}
    read = {name: source.reader(dictionaries=True) for name, source in sources.items()}
    for run in range(runs + 1):
        for place in range(min(map(len, groups.values()))):
            tables: dict[str, pa.Table] = {}
            read_s: dict[str, float] = {}
            for name in list(groups) if (run + place) % 2 else list(reversed(groups)):
                read_s[name], tables[name] = _timed(read[name], groups[name][place])
            took_s: dict[str, list[float]] = {"plain": [], "ikjt": [], "sessions": []}
            for begin in range(0, tables["clustered"].num_rows, BATCH_ROWS):
                for way in list(took_s) if (run + begin // BATCH_ROWS) % 2 else list(reversed(took_s)):
                    table = tables["sessions" if way == "sessions" else "clustered"].slice(begin, BATCH_ROWS)
                    took_s[way].append(_timed(made[way], table)[0])
            if run:
                pairs = zip(took_s["ikjt"], took_s["plain"], strict=True)
                found["ikjt"] += [with_it / without for with_it, without in pairs]
                found["sessions"].append(
                    (read_s["sessions"] + sum(took_s["sessions"])) / (read_s["clustered"] + sum(took_s["plain"]))
                )
    return found


def _timed(function: Callable[..., Any], item: Any) -> tuple[float, Any]:
    began_s = time.thread_time()
    result = function(item)
    return time.thread_time() - began_s, result


def batches(paths: dict[str, Path], count: int, batch_rows: int) -> tuple[list[Batch], list[Batch]]:
    """The first batches of the clustered file, plain and deduplicated by the plan."""
    made = functions(paths, hash_only=True)
    table = pq.read_table(paths["clustered"], columns=list(schema().columns))
    slices = [table.slice(begin * batch_rows, batch_rows) for begin in range(count)]
    return [made["plain"](one) for one in slices], [made["ikjt"](one) for one in slices]


def storage(paths: dict[str, Path]) -> dict[str, Any]:
    """Bytes of the shuffled file over those of the others."""
    shuffled = paths["shuffled"].stat().st_size
    return {name: shuffled / paths[name].stat().st_size for name in ("clustered", "sessions")}
