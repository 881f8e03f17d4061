"""`cluster` loses and invents no row, joins sessions within a time partition, and survives what is thrown at it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from lightning_intune.dedup.etl.cluster import cluster
from lightning_intune.dedup.etl.synth import SynthSpec, write_synth
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from tests.etl.helpers import OTTO, ROOT, job, multiset, rows_of, write

pytest.importorskip("duckdb")

DAY_MS = 86_400_000
SCHEMA = pa.schema(
    [
        ("session", pa.int64()),
        ("ts", pa.timestamp("ms")),
        ("user", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("nested", pa.list_(pa.list_(pa.int64()))),
        ("x", pa.float32()),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
    ]
)
SMALL = st.integers(0, 3)
ROW = st.fixed_dictionaries(
    {
        "session": SMALL,
        "ts": st.integers(0, 3 * DAY_MS),
        "user": st.none() | st.sampled_from(["", "a", "b'\"", "é"]),
        "ids": st.none() | st.lists(st.none() | SMALL, max_size=3),
        "nested": st.none() | st.lists(st.none() | st.lists(st.none() | SMALL, max_size=2), max_size=2),
        "x": st.none() | st.sampled_from([0.0, 1.5, float("nan"), float("inf")]),
        "kind": st.none() | st.sampled_from(["clicks", "orders"]),
    }
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@settings(max_examples=25)
@given(
    rows=st.lists(ROW, min_size=1, max_size=30), files=st.integers(1, 3), layout=st.sampled_from(["rows", "sessions"])
)
def test_the_output_is_the_input_in_another_order(rows: list[dict[str, Any]], files: int, layout: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for file in range(min(files, len(rows))):  # sessions lie in several files
            pq.write_table(table(rows[file::files]), folder / "in" / f"{file}.parquet")
        result = cluster(job(folder / "in", folder / "out", layout=layout, row_group_rows=4))
        out = rows_of(folder / "out", result.session_columns if layout == "sessions" else None)
        assert multiset(out) == multiset(table(rows))
        days = (out["ts"].cast(pa.int64()).to_numpy() // DAY_MS).tolist()
        order = list(zip(days, out["session"].to_pylist(), out["ts"].to_pylist(), strict=True))
        assert order == sorted(order)
        assert out.schema.types == SCHEMA.types
        assert [path.name for path in folder.iterdir() if path.name != "in"] == ["out"]


def test_no_later_row_comes_before_an_earlier_partition_ends(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.parquet", session=[2, 1, 2, 1], ts=pa.array([5, DAY_MS, DAY_MS + 1, 7], pa.timestamp("ms"))
    )
    cluster(job(source, tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1970-01-01.parquet", "1970-01-02.parquet"]
    assert ParquetSource(str(tmp_path / "out")).num_rows == 4  # and our source reads them in that order
    assert rows_of(tmp_path / "out")["session"].to_pylist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("partition", "files"),
    [("hour", ["1970-01-01T00.parquet", "1970-01-01T01.parquet", "1970-01-02T00.parquet"]), ("none", ["all.parquet"])],
    ids=["hour", "none"],
)
def test_partitions_may_be_hours_or_one(partition: Any, files: list[str], tmp_path: Path) -> None:
    times = pa.array([0, 3_600_000, DAY_MS], pa.timestamp("ms"))
    cluster(job(write(tmp_path / "in.parquet", session=[1, 1, 1], ts=times), tmp_path / "out", partition=partition))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)], ids=str)
def test_the_unit_of_a_time_in_numbers_is_told_by_its_size(unit: str, scale: int, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=[1], ts=[1_659_304_800 * scale])
    assert cluster(job(source, tmp_path / "out")).time_unit == unit
    assert (tmp_path / "out" / "2022-07-31.parquet").exists()


def test_rows_of_one_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=[1] * 50, ts=[5] * 50, place=np.arange(50)[::-1])
    cluster(job(source, tmp_path / "out"))
    assert rows_of(tmp_path / "out")["place"].to_pylist() == list(range(50))[::-1]


def test_the_session_layout_stores_once_what_stays_and_says_so(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.parquet",
        session=[7, 8, 7],
        ts=[2, 3, 1],
        user=["a", "b", "a"],
        item=[1, 2, 3],
        tags=[[1], [], None],
    )
    result = cluster(job(source, tmp_path / "out", layout="sessions"))
    stored = pq.read_table(tmp_path / "out" / "1970-01-01.parquet")
    assert list(result.session_columns) == ["session", "user"]
    assert stored.to_pylist() == [
        {"session": 7, "ts": [1, 2], "user": "a", "item": [3, 1], "tags": [None, [1]]},
        {"session": 8, "ts": [3], "user": "b", "item": [2], "tags": [[]]},
    ]
    about = stored.schema.metadata
    assert about[b"lightning_intune.layout"] == b"sessions"
    assert json.loads(about[b"lightning_intune.session_level"]) == ["session", "user"]
    assert (result.num_rows, result.num_sessions) == (3, 2)


def test_session_columns_may_be_chosen_and_must_not_change(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=[7, 7], ts=[2, 1], user=["a", "a"], city=["c", "c"], item=[1, 2])
    with pytest.raises(ConfigError, match=r"column 'item' changes within a session.*session, user, city"):
        cluster(job(source, tmp_path / "out", layout="sessions", session_columns=["item"]))
    result = cluster(job(source, tmp_path / "out", layout="sessions", session_columns=["user"]))
    assert list(result.session_columns) == ["session", "user"]


@pytest.mark.parametrize("layout", ["rows", "sessions"])
def test_a_session_of_very_many_rows_is_cut_to_rows_of_bounded_size(layout: Any, tmp_path: Path) -> None:
    num = 20_000
    source = write(tmp_path / "in.parquet", session=[1] * num + [2], ts=np.arange(num + 1), item=np.arange(num + 1))
    result = cluster(job(source, tmp_path / "out", layout=layout, max_session_rows=3_000, row_group_rows=1_000))
    out = rows_of(tmp_path / "out", result.session_columns if layout == "sessions" else None)
    assert out["item"].to_pylist() == list(range(num + 1))
    assert (result.num_rows, result.num_sessions) == (num + 1, 2)
    if layout == "sessions":
        lengths = pc.list_value_length(pq.read_table(tmp_path / "out")["item"]).to_pylist()
        assert max(lengths) == 3_000
        assert len(lengths) >= 7


def test_a_column_without_any_value_is_kept(tmp_path: Path) -> None:
    cluster(job(write(tmp_path / "in.parquet", session=[1], ts=[1], no=pa.nulls(1), ids=[[]]), tmp_path / "out"))
    assert rows_of(tmp_path / "out").to_pylist() == [{"session": 1, "ts": 1, "no": None, "ids": []}]


@pytest.mark.slow
def test_the_memory_limit_is_kept_over_a_million_rows(tmp_path: Path) -> None:
    source = write_synth(SynthSpec(num_rows=1_000_000, order="shuffled"), tmp_path / "in.parquet")
    code = (
        "import sys; from lightning_intune.console import main; assert main(sys.argv[1:]) == 0; "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )  # not ru_maxrss, which a child inherits from the process that started it: here a whole test run's
    arguments = ["cluster", str(source), str(tmp_path / "out"), "--session=session", "--time=ts", "--layout=sessions"]
    command = [sys.executable, "-c", code, *arguments, "--memory-limit=1GiB", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout.splitlines()[-1]) * 1024 < 2**30


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.large_string()], ids=str)
def test_sessions_may_be_texts_of_every_kind(kind: pa.DataType, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=pa.array(["b", "a", "b"]).cast(kind), ts=[3, 2, 1], x=[1, 2, 3])
    cluster(job(source, tmp_path / "out", layout="sessions"))
    stored = pq.read_table(tmp_path / "out" / "1970-01-01.parquet")
    assert stored.select(["session", "x"]).to_pylist() == [{"session": "a", "x": [2]}, {"session": "b", "x": [3, 1]}]


# ---- formats ----


def test_csv_and_json_lines_come_through_zipped_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("session,ts,user\n1,2022-08-01 10:00:00,x\n2,2022-08-01 09:00:00,y\n")
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress(b'{"session":1,"ts":5,"ids":[1,2]}\n{"session":2,"ts":4,"ids":null}\n')
    )
    assert cluster(job(tmp_path / "a.csv", tmp_path / "c")).num_rows == 2
    assert rows_of(tmp_path / "c")["user"].to_pylist() == ["x", "y"]
    cluster(job(tmp_path / "b.jsonl.gz", tmp_path / "j"))
    assert rows_of(tmp_path / "j")["ids"].to_pylist() == [[1, 2], None]


def test_ottos_events_become_rows_with_the_items_before_them(tmp_path: Path) -> None:
    events = [{"aid": aid, "ts": 1_659_304_800_000 + aid, "type": "clicks"} for aid in (1, 2, 3)]
    (tmp_path / "o.jsonl").write_text(json.dumps({"session": 9, "events": events}) + "\n")
    cluster(job(tmp_path / "o.jsonl", tmp_path / "out", history=2))
    rows = rows_of(tmp_path / "out").select(["session", "aid", "type", "history"]).to_pylist()
    assert [row["history"] for row in rows] == [[], [1], [1, 2]]
    assert rows[2] == {"session": 9, "aid": 3, "type": "clicks", "history": [1, 2]}


@pytest.mark.skipif(not OTTO.exists(), reason=f"the OTTO sample is not at {OTTO}")
@pytest.mark.parametrize("layout", ["rows", "sessions"])
def test_the_otto_sample_converts(layout: Any, tmp_path: Path) -> None:
    expected = [
        {"session": line["session"], **event}
        for line in map(json.loads, OTTO.read_text().splitlines())
        for event in line["events"]
    ]
    result = cluster(job(OTTO, tmp_path / "out", layout=layout))
    out = rows_of(tmp_path / "out", result.session_columns if layout == "sessions" else None)
    assert multiset(out) == multiset(pa.Table.from_pylist(expected))
    assert result.num_rows == len(expected)
