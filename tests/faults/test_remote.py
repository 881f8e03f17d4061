"""Reading from an S3-compatible server that delays, throttles, cuts short and resets: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from tests.faults.remote import FILE_ROWS, NUM_FILES

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_reads_come_through_every_kind_of_failure_and_no_secret_gets_out() -> None:
    pytest.importorskip("moto")
    command = [sys.executable, "-m", "tests.faults.remote", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110)
    found = json.loads(done.stdout)
    assert found["rows"] == list(range(NUM_FILES * FILE_ROWS))
    assert found["kinds"] == ["503", "cut", "latency", "reset"]
    assert found["retried"] > 0
    assert (found["skipped_rows"], found["quarantined"]) == (0, NUM_FILES * FILE_ROWS // 100)  # by row group, of 100
    assert not found["is_secret_out"], found["texts"]
    assert "s3cr3t" not in done.stderr


@pytest.mark.parametrize("paths", [["s3://key:s3cr3t@a/x", "s3://b/x"], ["nowhere://key:s3cr3t@a/x"]])
def test_errors_about_uris_hide_the_credentials_in_them(paths: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ParquetSource(paths)
    assert "s3cr3t" not in str(caught.value)
    assert "***@a" in str(caught.value)
