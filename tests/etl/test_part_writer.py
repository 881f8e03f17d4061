"""However the sorted stream is cut, a partition is one file and a session one row."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from lightning_intune.dedup.etl.output_file import OutputFile
from lightning_intune.dedup.etl.part_writer import PartSettings, part_metadata, split_parts, write_part
from lightning_intune.dedup.etl.survey import PART

SORTED = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=25).map(sorted)


def settings(*, row_group_rows: int, max_session_rows: int = 100) -> PartSettings:
    return PartSettings(
        session="session",
        time="ts",
        partition="day",
        layout="sessions",
        session_level=["session"],
        row_group_rows=row_group_rows,
        max_session_rows=max_session_rows,
    )


def written(rows: list[tuple[int, int]], sizes: list[int], how: PartSettings) -> dict[int, list[tuple[int, list[int]]]]:
    """(session, places of its rows) of each stored row, by partition; `sizes` are how many rows come at a time."""
    table = pa.table(
        {"session": [s for _, s in rows], "ts": range(len(rows)), PART: pa.array([p for p, _ in rows], pa.int64())}
    )
    batches, at = [], 0
    for size in [*sizes, len(rows)]:
        batches += table[at : at + size].to_batches()
        at += size
    stored: dict[int, list[tuple[int, list[int]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, tables in split_parts(batches):
            assert number not in stored
            path = Path(folder) / f"{number}.parquet"
            with OutputFile(path, metadata=part_metadata(how)) as out:
                num_rows, num_sessions = write_part(tables, out, how, lambda _: None)
                out.commit()
            stored[number] = [(row["session"], row["ts"]) for row in pq.read_table(path).to_pylist()]
            assert num_rows == sum(part == number for part, _ in rows)
            assert num_sessions == len({session for part, session in rows if part == number})
    return stored


@given(rows=SORTED, sizes=st.lists(st.integers(1, 4)), row_group_rows=st.integers(1, 6))
def test_a_session_is_one_row_wherever_the_stream_is_cut(
    rows: list[tuple[int, int]], sizes: list[int], row_group_rows: int
) -> None:
    expected: dict[int, dict[int, list[int]]] = {}
    for place, (part, session) in enumerate(rows):
        expected.setdefault(part, {}).setdefault(session, []).append(place)
    stored = written(rows, sizes, settings(row_group_rows=row_group_rows))
    assert stored == {part: list(sessions.items()) for part, sessions in expected.items()}


@pytest.mark.parametrize("sizes", [[1] * 8, [8], [3, 3, 3], [4, 4]], ids=str)
def test_a_session_over_the_limit_is_cut_there_and_no_earlier(sizes: list[int]) -> None:
    stored = written([(0, 5)] * 7 + [(0, 6)], sizes, settings(row_group_rows=2, max_session_rows=3))
    assert stored == {0: [(5, [0, 1, 2]), (5, [3, 4, 5]), (5, [6]), (6, [7])]}
