"""What `cluster` refuses: it names the column and the file, or the disk that is full, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lightning_intune.dedup.etl.cluster import cluster
from lightning_intune.dedup.etl.engine import open_engine
from lightning_intune.dedup.etl.output_file import DiskFullError
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, write_synth
from lightning_intune.errors import ConfigError
from tests.etl.helpers import LIMIT, job, rows_of, write

pytest.importorskip("duckdb")


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
