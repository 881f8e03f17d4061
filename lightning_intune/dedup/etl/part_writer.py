"""Cuts a sorted stream of rows into one file per time partition, in either layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import final

import numpy as np
import pyarrow as pa

from lightning_intune.dedup.etl.output_file import OutputFile
from lightning_intune.dedup.etl.session_layout import file_metadata, fold_sessions, session_bounds
from lightning_intune.dedup.etl.survey import PART, Partition
from lightning_intune.dedup.etl.synth_spec import Layout
from lightning_intune.errors import ConfigError

_MAX_BUFFER_BYTES = 64 * 2**20


@final
@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """How a partition's file is written."""

    session: str
    time: str
    partition: Partition
    layout: Layout
    session_level: Sequence[str]
    """For `sessions`: the columns that stay as they are."""
    row_group_rows: int
    """Rows (events) of a row group, about."""
    max_session_rows: int
    """For `sessions`: a longer session becomes several rows."""


def split_parts(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """(number, its rows without the column `PART`) of each partition; use up one before taking the next."""
    waiting: list[pa.Table] = []
    source = (pa.Table.from_batches([batch]) for batch in batches if batch.num_rows)

    def one(number: int) -> Iterator[pa.Table]:
        while (rows := waiting.pop() if waiting else next(source, None)) is not None:
            numbers = np.asarray(rows.column(PART))
            end = int(np.searchsorted(numbers, number, side="right"))
            if end:
                yield rows[:end].drop_columns(PART)
            if end < rows.num_rows:
                waiting.append(rows[end:])
                return

    while (first := waiting.pop() if waiting else next(source, None)) is not None:
        waiting.append(first)
        number = int(first.column(PART)[0].as_py())
        yield number, one(number)


def write_part(
    rows: Iterable[pa.Table], out: OutputFile, settings: PartSettings, on_rows: Callable[[int], None]
) -> tuple[int, int]:
    """Write one partition's rows, sorted by session, and give (rows, sessions). `out` is left open."""
    waiting: list[pa.Table] = []
    num_waiting, num_bytes, num_rows, num_sessions, last = 0, 0, 0, 0, None
    for table in rows:
        waiting.append(table)
        num_waiting += table.num_rows
        num_bytes += table.nbytes
        num_rows += table.num_rows
        ids = table.column(settings.session)
        num_sessions += len(session_bounds(ids)) - 1 - int(ids[0].as_py() == last)
        last = ids[-1].as_py()
        if num_waiting >= settings.row_group_rows or num_bytes >= _MAX_BUFFER_BYTES:
            rest = _write(pa.concat_tables(waiting), out, settings, is_last=False)
            on_rows(num_waiting - rest.num_rows)
            waiting, num_waiting, num_bytes = [rest], rest.num_rows, rest.nbytes
    if num_waiting:
        _write(pa.concat_tables(waiting), out, settings, is_last=True)
        on_rows(num_waiting)
    return num_rows, num_sessions


def _write(rows: pa.Table, out: OutputFile, settings: PartSettings, *, is_last: bool) -> pa.Table:
    """Write what is whole; what has to wait for the session's end comes back."""
    if settings.layout == "rows":
        out.write(rows)
        return rows[:0]
    bounds = session_bounds(rows.column(settings.session))
    if not is_last:  # the last session may go on: of it only what fills a row of the longest is written now
        whole = (rows.num_rows - bounds[-2]) // settings.max_session_rows * settings.max_session_rows
        bounds = np.append(bounds[:-1], bounds[-2] + whole) if whole else bounds[:-1]
    cuts = [
        cut
        for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        for cut in range(begin, end, settings.max_session_rows)
    ]
    cuts.append(int(bounds[-1]))
    if len(cuts) > 1:
        out.write(fold_sessions(rows[: cuts[-1]], np.array(cuts, dtype=np.int64), settings.session_level))
    return rows[cuts[-1] :]


def part_metadata(settings: PartSettings) -> dict[bytes, bytes]:
    """What each file's footer says."""
    return file_metadata(
        settings.layout,
        session=settings.session,
        time=settings.time,
        session_level=settings.session_level,
        partition=settings.partition,
    )


def part_name(number: int, partition: Partition) -> str:
    """The file of a partition; names sort as the partitions do (of the years 1000 to 9999).

    >>> part_name(19_205, "day"), part_name(0, "none")
    ('2022-08-01.parquet', 'all.parquet')
    """
    if partition == "none":
        return "all.parquet"
    step = timedelta(days=1) if partition == "day" else timedelta(hours=1)
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + number * step
    except OverflowError as error:
        raise ConfigError(
            f"cluster: a time lies {number} {partition}s from 1970, beyond the years 1 to 9999. Mend the time column, "
            "or use --partition none."
        ) from error
    return f"{at:%Y-%m-%d}.parquet" if partition == "day" else f"{at:%Y-%m-%dT%H}.parquet"
