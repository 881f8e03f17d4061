"""Mutated files: only our own errors come out, in a child process with limits of memory and time."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from tests.faults import hostile

NUM_SAMPLE = int(os.environ.get("HOSTILE_FILES") or 60)


def test_mutated_files_lead_to_our_own_errors_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    num_done, counts, bad = hostile.fuzz(0, NUM_SAMPLE, tmp_path)
    assert bad == []
    assert num_done == NUM_SAMPLE
    assert sum(count for outcome, count in counts.items() if outcome.endswith("Error")) > NUM_SAMPLE // 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise RuntimeError('not ours')", "RuntimeError"),
        ("import os; os.kill(os.getpid(), 11)", "ended the process: -11"),
        ("import time; time.sleep(60)", "ended the process: -14"),
        ("while True: pass", "ended the process: -27"),
        ("bytearray(8 << 30)", "MemoryError"),
    ],
)
def test_what_should_not_come_out_is_seen(
    fault: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE_FAULT", fault)
    monkeypatch.setenv("HOSTILE_ITEM_S", "2")
    monkeypatch.setenv("HOSTILE_HANG_S", "4" if "sleep" in fault else "90")
    num_done, _, bad = hostile.fuzz(0, 1, tmp_path)
    assert num_done == 1
    assert words in bad[0]


def test_mutations_are_the_same_for_a_number_and_never_the_original() -> None:
    data = hostile.originals()["rows.csv"]
    assert hostile.mutated(data, random.Random(5)) == hostile.mutated(data, random.Random(5))
    assert sum(hostile.mutated(data, random.Random(seed)) != data for seed in range(50)) >= 45


def test_a_column_whose_name_is_damaged_is_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "named.parquet"
    pq.write_table(pa.table({"column": [1, 2]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"column", b"col\xff\xfen"))
    with pytest.raises(ConfigError, match=r"named.parquet' is not a readable Parquet file"):
        ParquetSource(str(path))
