"""Sessions as logs have them at their worst, through `analyze` and `cluster` as a user starts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_intune.dedup.etl.analysis import AnalyzeJob, analyze
from lightning_intune.dedup.etl.cluster import cluster
from lightning_intune.dedup.etl.commands import analyze_main, cluster_main
from lightning_intune.dedup.etl.output_file import DiskFullError
from lightning_intune.errors import ConfigError
from tests.etl.helpers import job, rows_of, write

pytest.importorskip("duckdb")

COMMON = ["--session=session", "--time=ts", "--memory-limit=512MiB", "--threads=1", "--quiet"]


def test_a_session_split_over_files_and_out_of_order_is_joined_in_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "b.parquet", session=[1, 2, 1], ts=[9, 1, 4], ids=[[9], None, [None, 4]])
    write(tmp_path / "in" / "a.parquet", session=[2, 1], ts=[0, 6], ids=[[], [6]])
    assert cluster_main([str(tmp_path / "in"), str(tmp_path / "out"), *COMMON]) == 0
    assert rows_of(tmp_path / "out").to_pydict() == {
        "session": [1, 1, 1, 2, 2],
        "ts": [4, 6, 9, 0, 1],
        "ids": [[None, 4], [6], [9], [], None],
    }


@pytest.mark.parametrize("command", ["analyze", "cluster"])
def test_large_ids_beside_fractions_are_refused_and_not_rounded(command: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", session=[1], ts=[1], ids=[[2**60 + 1]])
    write(tmp_path / "in" / "b.parquet", session=[1], ts=[2], ids=[[1.5]])
    with pytest.raises(ConfigError, match=r"column 'ids' holds list<.*int64> in '.*a.parquet' and .* in '.*b.parquet'"):
        run(command, tmp_path)


@pytest.mark.parametrize("command", ["analyze", "cluster"])
def test_lines_of_several_lengths_are_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("session,ts,x\n1,2,3\n1,2\n1,2,3,4\n")
    with pytest.raises(ConfigError, match=r"the first line of '.*a.csv' was not taken for a header"):
        run(command, tmp_path)


def run(command: str, folder: Path) -> None:
    if command == "analyze":
        analyze_main([str(folder / "in"), *COMMON])
    else:
        cluster_main([str(folder / "in"), str(folder / "out"), *COMMON])


def test_data_without_a_feature_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", session=[1, 1], ts=[1, 2], deep=[[[1]], [[1]]])
    with pytest.raises(
        ConfigError, match=r"no column of '.*in.parquet' is a feature .* it has 'session', 'ts', 'deep'"
    ):
        analyze_main([str(tmp_path / "in.parquet"), *COMMON])


def test_one_session_longer_than_the_sample_is_looked_at_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "in.parquet", session=[5] * 3_000, ts=np.arange(3_000), user=[[1, 2]] * 3_000)
    for session in range(6):  # one id or other is not drawn
        pq.write_table(pq.read_table(path).set_column(0, "session", pa.array([session] * 3_000)), path)
        found = analyze(AnalyzeJob(paths=[str(path)], session="session", time="ts", sample_rows=100))
        assert found.features[0].stay_share == 1.0
        assert found.groups[0].features == ("user",)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's /dev/full is always full")
def test_a_full_disk_for_the_output_is_named_and_a_later_run_ends(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", session=[1], ts=[1])
    part = tmp_path / ".out.part" / ".1970-01-01.parquet.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(
        DiskFullError, match=r"no space is left on the disk of '.*.out.part'.*run the same command again"
    ):
        cluster(job(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert cluster(job(source, tmp_path / "out")).num_rows == 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rows", "sessions"])
def test_a_session_of_a_million_rows_comes_through(layout: str, tmp_path: Path) -> None:
    num = 1_000_000
    user = pa.array([[1, 2, 3]]).take(pa.array(np.zeros(num, np.int64)))
    source = write(tmp_path / "in.parquet", session=np.zeros(num, np.int64), ts=np.arange(num), user=user)
    assert cluster_main([str(source), str(tmp_path / "out"), f"--layout={layout}", *COMMON]) == 0
    out = rows_of(tmp_path / "out", ["session", "user"] if layout == "sessions" else None)
    assert out["ts"].equals(pa.chunked_array([np.arange(num)]))
    assert analyze_main([str(source), *COMMON]) == 0
