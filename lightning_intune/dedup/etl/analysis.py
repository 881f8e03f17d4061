"""Measures how often the features of a data set repeat within sessions, and what deduplication would spare."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.column_types import is_list, is_number, is_text, plain
from lightning_intune.config import check_columns
from lightning_intune.dedup.etl.engine import open_engine, quoted, row_hash
from lightning_intune.dedup.etl.inputs import TIE, Inputs, open_inputs
from lightning_intune.dedup.etl.output_file import ZSTD_LEVEL, dictionary_columns
from lightning_intune.dedup.etl.session_layout import fold_sessions, session_bounds
from lightning_intune.dedup.measure import measure
from lightning_intune.dedup.plan import DedupPlan, FeatureGroup, FeatureStats, expected_speedup
from lightning_intune.errors import ConfigError

_BATCH = "__lightning_intune_batch"


@final
@dataclass(frozen=True, kw_only=True)
class AnalyzeJob:
    """What to look at."""

    paths: Sequence[str]
    session: str | None = None
    """None: rows as they stand count as one session, which tells what they repeat from one to the next."""
    time: str | None = None
    sample_rows: int = 100_000
    """Whole sessions are drawn, by their hash, until about so many rows."""
    batch_rows: int = 4_096
    history: int = 0
    memory_limit_bytes: int = 2**30
    threads: int = 2
    step_share: float = 0.5
    """Of a training step's time, the part that grows with the number of values (transforms, lookups, attention)."""

    def __post_init__(self) -> None:
        if self.sample_rows < 2 or self.batch_rows < 1 or self.threads < 1 or self.history < 0:
            raise ConfigError(
                f"analyze: sample_rows={self.sample_rows}, batch_rows={self.batch_rows}, threads={self.threads}, "
                f"history={self.history}; they have to be at least 2, 1, 1 and 0."
            )
        if not 0.0 <= self.step_share <= 1.0:
            raise ConfigError(f"analyze: step_share={self.step_share} is no share. Set it between 0 and 1.")


@final
@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """One column. Factors are rows per stored row, 1 or more: how many times less there is to store and compute."""

    name: str
    kind: str
    mean_length: float
    stay_share: float
    """d: share of the rows with a predecessor in their session whose value is the predecessor's."""
    shift_share: float
    """Share of those rows whose list is the predecessor's moved on: a partial duplicate."""
    exact_share: float
    """Share of a batch's rows whose value is in the batch already."""
    measured_factor: float
    """Rows over distinct values, in batches of `batch_rows` in session order; values of other sessions count too."""
    model_factor: float
    """By RecD's model of S and d."""
    partial_factor: float
    """By the model, where shifted lists share a buffer."""
    bytes_per_row: float
    saved_bytes_per_row: float
    """By the model, the row's entry in `inverse` paid for; negative where it costs more than it spares."""


@final
@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What was found, and of how much of the data."""

    files: int
    num_rows: int
    rows_without_session: int
    """Not looked at; `cluster` wants them mended, or left out with `--drop-nulls`."""
    sampled_rows: int
    sampled_sessions: int
    samples_per_session: float
    features: Sequence[FeatureReport]
    skipped: Sequence[str]
    """Columns of a type that is no feature's."""
    groups: Sequence[FeatureGroup]
    """Proposed: features that share one `inverse`."""
    bytes_per_row: float
    saved_bytes_per_row: float
    value_factor: float
    """How many times fewer bytes of values a batch holds with the proposed groups."""
    step_share: float
    step_speedup: float
    """Expected of a training step of which `step_share` grows with the values."""
    stored_bytes_per_row: dict[str, float]
    """Of the sample as Parquet (zstd): `shuffled`, `clustered`, `sessions`. Empty without a session column."""


def analyze(job: AnalyzeJob) -> Analysis:
    """Look at a sample in bounded memory. ConfigError for wrong columns and files that cannot be read."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_engine(job.memory_limit_bytes, Path(scratch), threads=job.threads) as engine,
    ):
        inputs = open_inputs(engine, job.paths, history=job.history, line_bytes=job.memory_limit_bytes // 32)
        named = [name for name in (job.session, job.time) if name is not None]
        check_columns("analyze", named, list(inputs.columns))
        of_sessions = "count(*)" if job.session is None else f"count({quoted(job.session)})"
        counted = engine.sql(f"SELECT count(*), {of_sessions} FROM ({inputs.relation})").fetchall()[0]
        num_rows, rows_in_sessions = counted
        sample = _sample(engine, inputs, job, num_rows)
        if sample.num_rows < 2:
            raise ConfigError(f"analyze: '{inputs.files[0]}' gives {sample.num_rows} rows, and repeats need two.")
        fit = [
            name for name in sample.column_names if name not in named and _is_feature(sample.schema.field(name).type)
        ]
        if not fit:
            raise ConfigError(
                f"analyze: no column of '{inputs.files[0]}' is a feature (numbers, texts, times, or lists of these) "
                f"beside {', '.join(map(repr, named)) or 'none'}; it has {', '.join(map(repr, inputs.columns))}. "
                "Write the features as such columns."
            )
        stats, changes = measure(sample, fit, session_column=job.session)
        distinct = _distinct_share(engine, sample, inputs, fit, job.batch_rows)
    plan = DedupPlan.choose(stats, changes)
    features = [_report(one, sample.schema.field(one.name).type, distinct[one.name]) for one in stats]
    bytes_per_row = sum(one.row_bytes for one in stats)
    saved = sum(group.saved_bytes_per_row for group in plan.groups)
    value_factor = bytes_per_row / max(1e-9, bytes_per_row - saved)
    bounds = session_bounds(sample.column(job.session)) if job.session else np.array([0, sample.num_rows])
    return Analysis(
        files=len(inputs.files),
        num_rows=num_rows,
        rows_without_session=num_rows - rows_in_sessions,
        sampled_rows=sample.num_rows,
        sampled_sessions=len(bounds) - 1,
        samples_per_session=sample.num_rows / (len(bounds) - 1),
        features=features,
        skipped=[name for name in sample.column_names if name not in named and name not in fit],
        groups=plan.groups,
        bytes_per_row=bytes_per_row,
        saved_bytes_per_row=saved,
        value_factor=value_factor,
        step_share=job.step_share,
        step_speedup=expected_speedup(value_factor, job.step_share),
        stored_bytes_per_row={} if job.session is None else _stored(sample, job.session),
    )


def _sample(engine: Any, inputs: Inputs, job: AnalyzeJob, num_rows: int) -> pa.Table:
    one_in = max(1, num_rows // job.sample_rows)
    sample = _drawn(engine, inputs, job, one_in)
    # Of few long sessions the draw may meet none: then the first ones are looked at, cut where they are too long.
    return sample if sample.num_rows >= 2 or one_in == 1 else _drawn(engine, inputs, job, 1)


def _drawn(engine: Any, inputs: Inputs, job: AnalyzeJob, one_in: int) -> pa.Table:
    """Whole sessions, one in so many."""
    names = ", ".join(map(quoted, inputs.columns))
    if job.session is None:
        engine.sql("SET preserve_insertion_order = true")
        query = f"SELECT {names} FROM ({inputs.relation})"
    else:
        key = quoted(job.session)
        order = ", ".join([key, *([quoted(job.time)] if job.time else []), TIE])
        # Whole sessions: a share of rows would cut each session short, and with it every factor.
        query = (
            f"SELECT {names} FROM ({inputs.relation}) WHERE {key} IS NOT NULL AND hash({key}) % {one_in} = 0 "
            f"ORDER BY {order}"
        )
    batches: list[pa.RecordBatch] = []
    left, room = max(2, job.sample_rows * 2), job.memory_limit_bytes // 8
    for batch in engine.sql(f"{query} LIMIT {left if job.session else job.sample_rows}").to_arrow_reader(8_192):
        batches.append(batch)
        room -= batch.nbytes
        if room < 0:
            break
    if not batches:
        return pa.table({name: pa.array([]) for name in inputs.columns})
    return pa.Table.from_batches(batches).combine_chunks()


def _is_feature(kind: pa.DataType) -> bool:
    value = plain(kind.value_type) if is_list(kind) else plain(kind)
    return is_number(value) or is_text(value) or pa.types.is_timestamp(value)


def _distinct_share(
    engine: Any, sample: pa.Table, inputs: Inputs, names: Sequence[str], batch_rows: int
) -> dict[str, float]:
    """Distinct values over rows, in batches of so many rows, wherever in the batch they stand."""
    number = pa.array(np.arange(sample.num_rows) // batch_rows)
    engine.register("sample", sample.append_column(_BATCH, number))
    counts = ", ".join(f"count(DISTINCT {row_hash({name: inputs.columns[name]})})" for name in names)
    if not names:
        return {}
    rows = engine.sql(f"SELECT {counts} FROM sample GROUP BY {_BATCH}").fetchall()
    totals = np.array(rows, dtype=np.float64).sum(0) / sample.num_rows
    return dict(zip(names, totals.tolist(), strict=True))


def _report(stats: FeatureStats, kind: pa.DataType, distinct_share: float) -> FeatureReport:
    return FeatureReport(
        name=stats.name,
        kind=f"list<{kind.value_type}>" if is_list(kind) else str(kind),
        mean_length=stats.mean_length,
        stay_share=stats.stay_share,
        shift_share=stats.shift_share,
        exact_share=1.0 - distinct_share,
        measured_factor=1.0 / distinct_share,
        model_factor=stats.factor,
        partial_factor=stats.partial_factor,
        bytes_per_row=stats.row_bytes,
        saved_bytes_per_row=stats.saved_bytes_per_row,
    )


def _stored(sample: pa.Table, session: str) -> dict[str, float]:
    """Bytes per row of the sample as a Parquet file, in each layout."""
    bounds = session_bounds(sample.column(session))
    shuffled = sample.take(pa.array(np.random.Generator(np.random.PCG64(0)).permutation(sample.num_rows)))
    level = [name for name in sample.column_names if _stays(sample, name, bounds)]
    folded = fold_sessions(sample, bounds, [session, *level])
    layouts = {"shuffled": shuffled, "clustered": sample, "sessions": folded}
    return {name: _parquet_bytes(rows) / sample.num_rows for name, rows in layouts.items()}


def _stays(sample: pa.Table, name: str, bounds: Any) -> bool:
    column = sample.column(name)
    first = column.take(pa.array(np.repeat(bounds[:-1], np.diff(bounds))))
    return column.equals(first) or column.combine_chunks().equals(first.combine_chunks())


def _parquet_bytes(rows: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    dictionaries: Any = dictionary_columns(rows[:20_000])
    pq.write_table(rows, sink, compression="zstd", compression_level=ZSTD_LEVEL, use_dictionary=dictionaries)
    return sink.tell()
