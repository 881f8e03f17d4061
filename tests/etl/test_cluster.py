"""`cluster` loses and invents no row, joins sessions within a time partition, and survives what is thrown at it."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from lightning_intune.dedup.etl.cluster import VerificationError, cluster
from lightning_intune.dedup.etl.engine import open_engine
from lightning_intune.dedup.etl.manifest import locked
from lightning_intune.dedup.etl.output_file import DiskFullError
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, write_synth
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from tests.etl.helpers import LIMIT, OTTO, ROOT, job, multiset, rows_of

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


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


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


# ---- killed and resumed ----


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine days of shuffled rows."""
    path = tmp_path_factory.mktemp("days") / "in.parquet"
    return write_synth(SynthSpec(num_rows=4_000, order="shuffled", num_days=9), path)


def kill_at(step: int, work: Any) -> None:
    """Run it as a process, and SIGKILL it after so many steps."""
    command = [sys.executable, "-m", "tests.etl.killed", json.dumps(asdict(work))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(step):
            if not process.stdout.readline():
                break  # it was done before
            if number < step - 1:
                process.stdin.write("\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("layout", ["rows", "sessions"])
def test_a_killed_run_goes_on_and_redoes_no_finished_partition(layout: Any, days: Path, tmp_path: Path) -> None:
    work = job(days, tmp_path / "out", layout=layout)
    whole = cluster(job(days, tmp_path / "whole", layout=layout))
    kill_at(10, work)
    part = tmp_path / ".out.part"
    assert not (tmp_path / "out").exists()
    before = {path.name: path.stat().st_mtime_ns for path in part.glob("2*.parquet")}
    assert before
    kill_at(7, work)  # and once more
    result = cluster(work)
    assert result.num_resumed >= len(before)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert {name: after[name] for name in before} == before
    assert result.checksum == whole.checksum
    level = whole.session_columns if layout == "sessions" else None
    assert rows_of(tmp_path / "out", level).equals(rows_of(tmp_path / "whole", level))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 40, 2))
def test_a_run_killed_at_any_step_ends_the_same(step: int, days: Path, tmp_path: Path) -> None:
    work = job(days, tmp_path / "out", layout="sessions")
    kill_at(step, work)
    if not (tmp_path / "out").exists():
        cluster(work)
    assert multiset(rows_of(tmp_path / "out", ["session"])) == multiset(pq.read_table(days))


def stopped(work: Any, name: str) -> None:
    """Run until a partition is finished, then fail as a disk or a user might make it."""

    def stop(what: str, *_: int) -> None:
        if what.startswith(name):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster(work, stop)


def test_a_damaged_partition_is_found_and_done_anew(days: Path, tmp_path: Path) -> None:
    work = job(days, tmp_path / "out")
    stopped(work, "finished 2022-08-02")
    finished = tmp_path / ".out.part" / "2022-08-01.parquet"
    rows = pq.read_table(finished)
    pq.write_table(rows[1:], finished)
    result = cluster(work)
    assert result.num_resumed == 2  # of 07-31, 08-01 and 08-02
    assert multiset(rows_of(tmp_path / "out")) == multiset(pq.read_table(days))


def test_unfinished_output_of_another_job_is_not_taken_up(days: Path, tmp_path: Path) -> None:
    stopped(job(days, tmp_path / "out"), "finished")
    with pytest.raises(ConfigError, match="unfinished output of another run: layout differ"):
        cluster(job(days, tmp_path / "out", layout="sessions"))
    (tmp_path / ".out.part" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json' is damaged"):
        cluster(job(days, tmp_path / "out"))


def test_two_runs_do_not_write_one_output(days: Path, tmp_path: Path) -> None:
    with locked(tmp_path / ".out.part"), pytest.raises(ConfigError, match="another run is writing"):
        cluster(job(days, tmp_path / "out"))


def test_rows_that_change_under_way_are_noticed_and_the_output_not_named(days: Path, tmp_path: Path) -> None:
    source = shutil.copy(days, tmp_path / "in.parquet")

    def spoil(what: str, *_: int) -> None:
        if what == "sorting":
            pq.write_table(pq.read_table(source)[1:], source)

    with pytest.raises(VerificationError, match=r"3999 rows of checksum .* where the input has 4000"):
        cluster(job(Path(source), tmp_path / "out"), spoil)
    assert not (tmp_path / "out").exists()


# ---- bad input ----

BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a wrong name": ({"session": [1], "ts": [1]}, {"session": "sesion"}, "no column 'sesion' .did you mean 'session'"),
    "null session": ({"session": [1, None], "ts": [1, 2]}, {}, "'session' is null in 1 rows of '.*in.parquet'"),
    "null time": ({"session": [1, 2], "ts": [1, None]}, {}, "'ts' is null in 1 rows of '.*in.parquet'"),
    "a time of text": ({"session": [1], "ts": ["noon"]}, {}, "time column 'ts' of '.*in.parquet' holds VARCHAR"),
    "no rows": ({"session": pa.array([], pa.int64()), "ts": pa.array([], pa.int64())}, {}, "hold no row"),
    "names in two cases": ({"session": [1], "ts": [1], "TS": [1]}, {}, "differ in case only"),
    "session is time": ({"ts": [1]}, {"session": "ts"}, "session and time are both 'ts'"),
    "too little memory": ({"session": [1], "ts": [1]}, {"memory_limit_bytes": 2**20}, "1 MiB is too little"),
    "columns without layout": ({"session": [1], "ts": [1]}, {"session_columns": ["a"]}, "--layout sessions only"),
    "a time of no year": (
        {"session": [1], "ts": pa.array([2**62], pa.timestamp("us"))},
        {},
        "beyond the years 1 to 9999",
    ),
    "a session of lists": ({"session": [[1]], "ts": [1]}, {}, "session column 'session' of '.*' holds BIGINT"),
    "a name of ours": (
        {"session": [1], "ts": [1], "file_index": [1]},
        {},
        "'file_index' of '.*' has a name that is needed",
    ),
    "no threads": ({"session": [1], "ts": [1]}, {"threads": 0}, "threads=0 is below 1"),
    "history of no events": ({"session": [1], "ts": [1]}, {"history": 3}, "history=3 is made of OTTO's events only"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str, tmp_path: Path) -> None:
    columns, options, says = BAD[case]
    with pytest.raises(ConfigError, match=says):
        cluster(job(write(tmp_path / "in.parquet", **columns), tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_nulls_may_be_left_out(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=[1, None, 3], ts=[1, 2, None])
    result = cluster(job(source, tmp_path / "out", drop_nulls=True))
    assert (result.num_rows, result.num_dropped) == (1, 2)


def test_list_types_that_clash_over_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", session=[1], ts=[1], ids=[[1]])
    write(tmp_path / "in" / "b.parquet", session=[1], ts=[1], ids=[["x"]])
    with pytest.raises(ConfigError, match=r"column 'ids' holds list<.*> in '.*a.parquet' and list<.*b.parquet'"):
        cluster(job(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "m.jsonl").write_text('{"session":1,"ts":1,"ids":[1]}\n{"session":1,"ts":2,"ids":5}\n')
    with pytest.raises(ConfigError, match=r"column 'ids' holds values of different types in '.*m.jsonl'"):
        cluster(job(tmp_path / "m.jsonl", tmp_path / "out"))


def test_list_types_of_several_widths_are_widened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", session=[1], ts=[1], ids=pa.array([[1]], pa.list_(pa.int32())))
    write(tmp_path / "in" / "b.parquet", session=[1], ts=[2], ids=pa.array([[2**40]], pa.list_(pa.int64())))
    cluster(job(tmp_path / "in", tmp_path / "out"))
    assert rows_of(tmp_path / "out")["ids"].to_pylist() == [[1], [2**40]]


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", '{"session": 1, "ts"'), ("a.parquet", "no"), ("a.txt", "x")])
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        cluster(job(tmp_path / name, tmp_path / "out"))


def test_an_output_that_exists_is_left_alone(days: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists, and would be overwritten"):
        cluster(job(days, tmp_path / "out"))
    with pytest.raises(ConfigError, match="does not exist"):
        cluster(job(days, tmp_path / "nowhere" / "out"))


def test_a_full_disk_for_sorting_is_named(tmp_path: Path) -> None:
    query = "SELECT range AS n, repeat('x', 120) || range AS t FROM range(2500000) ORDER BY hash(range)"
    with (
        pytest.raises(DiskFullError, match=r"no space is left for sorting in '.*spill'"),
        open_engine(LIMIT, tmp_path / "spill", threads=1, scratch_bytes=2**20) as engine,
    ):
        list(engine.sql(query).to_arrow_reader(10_000))


@pytest.mark.slow
def test_more_room_lets_a_run_go_on_that_met_a_full_disk(tmp_path: Path) -> None:
    ids = SynthFeature(name="ids", change=1.0, mean_length=120)
    source = write_synth(SynthSpec(num_rows=250_000, order="shuffled", features=[ids]), tmp_path / "in.parquet")
    with pytest.raises(DiskFullError, match="run the same command again"):
        cluster(job(source, tmp_path / "out", scratch_limit_bytes=2**20))
    assert cluster(job(source, tmp_path / "out")).num_rows == 250_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's /dev/full is always full")
def test_a_full_disk_for_the_output_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / ".out.parquet.part").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=f"no space is left on the disk of '{tmp_path}'"):
        write_synth(SynthSpec(num_rows=50_000), tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []
