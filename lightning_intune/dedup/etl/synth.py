"""Made-up session data of any size in flat memory: as batches, as a table, as a Parquet file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from lightning_intune.dedup.etl.output_file import OutputFile
from lightning_intune.dedup.etl.scatter import Buckets, scatter
from lightning_intune.dedup.etl.session_layout import file_metadata, fold_sessions, session_bounds
from lightning_intune.dedup.etl.synth_chunk import DAY_MS, FIRST_MS, draw_chunk
from lightning_intune.dedup.etl.synth_spec import OTTO_MEAN_EVENTS
from lightning_intune.dedup.etl.synth_spec import Layout as Layout
from lightning_intune.dedup.etl.synth_spec import SynthFeature as SynthFeature
from lightning_intune.dedup.etl.synth_spec import SynthSpec as SynthSpec
from lightning_intune.dedup.etl.synth_spec import default_features as default_features
from lightning_intune.errors import ConfigError

_BUCKET_ROWS = 100_000
_MAX_BUCKETS = 512  # each keeps a file open


def batches(spec: SynthSpec) -> Iterator[pa.RecordBatch]:
    """The rows, session by session whatever `spec.order` says, a few thousand at a time; nothing is kept."""
    left, number = spec.num_rows, 0
    while left:
        rows = draw_chunk(spec, number).rows[:left]
        left, number = left - rows.num_rows, number + 1
        yield rows


def table(spec: SynthSpec) -> pa.Table:
    """All rows in memory, in `spec.order`.

    >>> table(SynthSpec(num_rows=7, features=[SynthFeature(name="user", change=0.0)], num_dense=0)).column_names
    ['session', 'ts', 'user', 'label']
    """
    rows = pa.Table.from_batches(list(batches(spec))).combine_chunks()
    return _in_order(rows, spec, np.random.Generator(np.random.PCG64([spec.seed, 1, 0])))


def write_synth(
    spec: SynthSpec,
    path: str | os.PathLike[str],
    *,
    layout: Layout = "rows",
    row_group_rows: int = 65_536,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write the data to one Parquet file, at any size in flat memory; `on_rows` hears how many rows more were drawn.

    `sessions` writes one row per session (docs/sessions.md); a row group then holds about `row_group_rows` events.
    The orders `time` and `shuffled` go through temporary files beside `path`, as large as the data. ConfigError if
    `path` exists, and for `sessions` in another order than `session`; DiskFullError when the disk is full.
    """
    target = Path(path)
    if layout == "sessions" and spec.order != "session":
        raise ConfigError(
            f"synth: order='{spec.order}' parts the rows that layout='sessions' joins. Set order='session'."
        )
    if row_group_rows < 1:
        raise ConfigError(f"synth: row_group_rows={row_group_rows} holds no row. Set it to 1 or more.")
    level = ["session", *(feature.name for feature in spec.features if feature.change == 0.0)]
    about = file_metadata(layout, session="session", time="ts", session_level=level, partition="none")
    per_group = row_group_rows
    if layout == "sessions":
        per_group = max(1, round(row_group_rows / (spec.events_per_session or OTTO_MEAN_EVENTS)))
    with ExitStack() as stack:
        out = stack.enter_context(OutputFile(target, metadata=about, row_group_rows=per_group))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=target.parent, prefix=".synth-"))
        for rows in _joined(_ordered(spec, Path(scratch), on_rows), row_group_rows):
            if layout == "sessions":
                out.write(fold_sessions(rows, session_bounds(rows.column("session")), level))
            else:
                out.write(rows)
        out.commit()
    return target


def _ordered(spec: SynthSpec, folder: Path, on_rows: Callable[[int], None]) -> Iterator[pa.Table]:
    def drawn() -> Iterator[pa.RecordBatch]:
        for batch in batches(spec):
            on_rows(batch.num_rows)
            yield batch

    if spec.order == "session":
        yield from (pa.Table.from_batches([batch]) for batch in drawn())
        return
    num_buckets = min(_MAX_BUCKETS, -(-spec.num_rows // _BUCKET_ROWS))
    rng = np.random.Generator(np.random.PCG64([spec.seed, 1, 1]))

    def by_chance(batch: pa.RecordBatch) -> Buckets:
        return rng.integers(0, num_buckets, batch.num_rows)

    def by_time(batch: pa.RecordBatch) -> Buckets:
        passed = np.asarray(batch.column("ts").cast(pa.int64())) - FIRST_MS
        return np.minimum(passed * num_buckets // (spec.num_days * DAY_MS), num_buckets - 1)

    for rows in scatter(drawn(), by_time if spec.order == "time" else by_chance, num_buckets, folder):
        yield _in_order(rows, spec, rng)


def _in_order(rows: pa.Table, spec: SynthSpec, rng: np.random.Generator) -> pa.Table:
    if spec.order == "session":
        return rows
    if spec.order == "shuffled":
        return rows.take(pa.array(rng.permutation(rows.num_rows)))
    times = np.asarray(rows.column("ts").cast(pa.int64()))
    return rows.take(pa.array(np.argsort(times, kind="stable")))


def _joined(tables: Iterator[pa.Table], least_rows: int) -> Iterator[pa.Table]:
    """Tables of at least so many rows, the last one excepted."""
    waiting: list[pa.Table] = []
    for rows in tables:
        waiting.append(rows)
        if sum(part.num_rows for part in waiting) >= least_rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
