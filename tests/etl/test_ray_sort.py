"""The Ray engine writes what the other one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_intune.dedup.etl.cluster import cluster
from lightning_intune.dedup.etl.synth import SynthSpec, write_synth
from lightning_intune.errors import ConfigError
from tests.etl.helpers import job, multiset, rows_of

pytest.importorskip("duckdb")


def test_formats_that_ray_does_not_sort_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("session,ts\n1,5\n")
    with pytest.raises(ConfigError, match="--engine ray sorts Parquet"):
        cluster(job(tmp_path / "a.csv", tmp_path / "out", engine="ray"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data 2.60 warns of its own default settings
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # and leaves files and sockets to the collector
class TestOnACluster:
    @pytest.fixture(autouse=True)
    def needs_pandas(self) -> None:
        pytest.importorskip("pandas", reason="Ray Data needs pandas: pip install 'ray[data]'")

    @pytest.mark.parametrize("layout", ["rows", "sessions"])
    def test_ray_writes_what_duckdb_writes(self, layout: Any, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for seed in range(2):
            spec = SynthSpec(num_rows=1_500, seed=seed, order="shuffled", num_days=3)
            write_synth(spec, tmp_path / "in" / f"{seed}.parquet")
        by_ray = cluster(job(tmp_path / "in", tmp_path / "ray", layout=layout, engine="ray"))
        by_duckdb = cluster(job(tmp_path / "in", tmp_path / "duckdb", layout=layout))
        level = by_duckdb.session_columns if layout == "sessions" else None
        assert (by_ray.checksum, by_ray.num_sessions) == (by_duckdb.checksum, by_duckdb.num_sessions)
        assert multiset(rows_of(tmp_path / "ray", level)) == multiset(rows_of(tmp_path / "duckdb", level))
        for part in (tmp_path / "duckdb").iterdir():
            ours, theirs = (pq.read_table(tmp_path / name / part.name) for name in ("ray", "duckdb"))
            assert ours["session"].equals(theirs["session"])

    def test_times_in_numbers_and_nulls_are_taken_alike(self, tmp_path: Path) -> None:
        day = 86_400_000
        first = 1_659_304_800_000
        rows = pa.table({"session": [1, 1, None, 2], "ts": [first, first + day, first, None], "x": [1, 2, 3, 4]})
        pq.write_table(rows, tmp_path / "in.parquet")
        for engine in ("ray", "duckdb"):
            cluster(job(tmp_path / "in.parquet", tmp_path / engine, engine=engine, drop_nulls=True))
        names = [sorted(path.name for path in (tmp_path / engine).iterdir()) for engine in ("ray", "duckdb")]
        assert names[0] == names[1] == ["2022-07-31.parquet", "2022-08-01.parquet"]
