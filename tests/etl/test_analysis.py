"""`analyze` finds the repeats that data was made with, on whole sessions, in bounded memory."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_intune import console
from lightning_intune.dedup.etl.analysis import AnalyzeJob, analyze
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, write_synth
from lightning_intune.errors import ConfigError
from tests.etl.helpers import OTTO

pytest.importorskip("duckdb")

MIB = 2**20
FEATURES = [
    SynthFeature(name="still", change=0.0, mean_length=30, num_ids=10**9),
    SynthFeature(name="some", change=0.25, mean_length=30, num_ids=10**9),
    SynthFeature(name="moves", change=1.0, mean_length=30, shift=3, num_ids=10**9),
    SynthFeature(name="fresh", change=1.0, mean_length=30, num_ids=10**9),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = SynthSpec(num_rows=12_000, events_per_session=8, features=FEATURES, order="shuffled")
    return write_synth(spec, tmp_path_factory.mktemp("data") / "in.parquet")


def job(path: Path, **options: object) -> AnalyzeJob:
    return AnalyzeJob(
        **{"paths": [str(path)], "session": "session", "time": "ts", "memory_limit_bytes": 600 * MIB} | options
    )


def test_measured_and_model_factors_are_those_the_data_was_made_with(data: Path) -> None:
    found = analyze(job(data))
    by_name = {one.name: one for one in found.features}
    samples = found.samples_per_session
    assert samples == pytest.approx(8, rel=0.1)
    # S rows of which 1 + (S - 1) * (chance of a change) are stored.
    expected = {"still": samples, "some": samples / (1 + (samples - 1) * 0.25), "moves": 1.0, "fresh": 1.0}
    for name, factor in expected.items():
        assert by_name[name].model_factor == pytest.approx(factor, rel=0.05)
        assert by_name[name].measured_factor == pytest.approx(factor, rel=0.05)
    assert by_name["moves"].shift_share == pytest.approx(1.0, abs=0.02)
    assert by_name["moves"].partial_factor == pytest.approx(samples / (1 + (samples - 1) * 0.1), rel=0.05)
    assert {name for group in found.groups for name in group.features} == {"still", "some"}
    assert found.stored_bytes_per_row["sessions"] < found.stored_bytes_per_row["clustered"] * 1.02
    assert found.stored_bytes_per_row["clustered"] < found.stored_bytes_per_row["shuffled"]
    assert found.value_factor > 1.5
    assert 1.0 < found.step_speedup < found.value_factor


def test_a_sample_is_of_whole_sessions(data: Path) -> None:
    whole, sample = analyze(job(data)), analyze(job(data, sample_rows=3_000))
    assert sample.num_rows == whole.num_rows == 12_000
    assert 1_500 < sample.sampled_rows < 6_000
    assert sample.samples_per_session == pytest.approx(whole.samples_per_session, rel=0.2)


def test_without_a_session_column_neighbours_are_compared(data: Path, tmp_path: Path) -> None:
    rows = pa.table({"a": [[1], [1], [2], [2]], "b": [1, 2, 3, 4]})
    pq.write_table(rows, tmp_path / "in.parquet")
    found = analyze(job(tmp_path / "in.parquet", session=None, time=None))
    assert [(one.name, one.stay_share) for one in found.features] == [("a", pytest.approx(2 / 3)), ("b", 0.0)]
    assert found.stored_bytes_per_row == {}
    assert analyze(job(data, session=None)).groups == ()  # shuffled rows repeat nothing


def test_columns_that_are_no_features_are_named_and_nulls_are_taken(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "session": [1, 1, 1],
            "ids": pa.array([[1, None], None, None], pa.list_(pa.int64())),
            "text": ["a", None, None],
            "deep": [[[1]], [[2]], None],
            "map": [{"x": 1}, {"x": 2}, None],
        }
    )
    pq.write_table(rows, tmp_path / "in.parquet")
    found = analyze(job(tmp_path / "in.parquet", time=None))
    assert [one.name for one in found.features] == ["ids", "text"]
    assert list(found.skipped) == ["deep", "map"]


@pytest.mark.skipif(not OTTO.exists(), reason=f"the OTTO sample is not at {OTTO}")
def test_ottos_histories_shift() -> None:
    found = analyze(job(OTTO, history=20))
    expected = sum(len(json.loads(line)["events"]) for line in OTTO.read_text().splitlines())
    history = next(one for one in found.features if one.name == "history")
    assert (found.num_rows, found.sampled_sessions) == (expected, 20)
    assert history.shift_share > 0.9
    assert history.partial_factor > 5 > history.model_factor


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"session": "user"}, "no column 'user'"),
        ({"sample_rows": 1}, "sample_rows=1"),
        ({"step_share": 2.0}, "step_share=2.0 is no share"),
        ({"memory_limit_bytes": MIB}, "1 MiB is too little"),
    ],
    ids=["session", "sample", "share", "memory"],
)
def test_a_mistake_is_named(options: dict[str, object], says: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        analyze(job(data, **options))


def test_one_row_is_too_few(tmp_path: Path) -> None:
    pq.write_table(pa.table({"session": [1], "a": [1]}), tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="gives 1 rows, and repeats need two"):
        analyze(job(tmp_path / "in.parquet", time=None))


def test_rows_without_a_session_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pa.table({"session": [1, 1, None, 2, 2, None, None], "user": [5, 5, 6, 7, 7, 8, 9]})
    pq.write_table(rows, tmp_path / "log.parquet")
    found = analyze(job(tmp_path / "log.parquet", session="session", time=None))
    assert (found.num_rows, found.rows_without_session, found.sampled_rows) == (7, 3, 4)
    assert console.main(["analyze", str(tmp_path / "log.parquet"), "--session", "session"]) == 0
    assert "3 rows have no session and were left out" in capsys.readouterr().out
    assert analyze(job(tmp_path / "log.parquet", session=None, time=None)).rows_without_session == 0
