"""A run of `cluster` that was killed, stopped or misled goes on, or says what is wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lightning_intune.dedup.etl.cluster import VerificationError, cluster
from lightning_intune.dedup.etl.manifest import locked
from lightning_intune.errors import ConfigError
from tests.etl.helpers import ROOT, job, multiset, rows_of

pytest.importorskip("duckdb")


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
