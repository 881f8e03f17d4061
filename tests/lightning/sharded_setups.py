"""Runs of the examples of sharded tables on two ranks, killed and resumed: what they are told, and how they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
NUM_ROWS = 1_501  # over two ranks one more row on one of them: 12 steps an epoch, the last with a padded rank


def write_sessions(folder: Path) -> Path:
    """Sessions of 8 rows that share a history; rows have numbers."""
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 50, rng.integers(0, 4)).tolist() for _ in range(NUM_ROWS // 8 + 1)]
    for part, rows in enumerate(np.split(np.arange(NUM_ROWS), [NUM_ROWS // 2])):
        table = pa.table(
            {
                "row": rows.astype(np.float32),
                "history": pa.array([histories[row // 8] for row in rows], pa.list_(pa.int64())),
                "item": rng.integers(0, 50, len(rows)),
                "click": (rng.random(len(rows)) < 0.3).astype(np.int8),
            }
        )
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=110)
    return folder


def setup(
    model: str, data: Path, cuts: list[tuple[str, int]], settings: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A run of the example `model`, and where it is cut."""
    defaults: dict[str, Any] = {
        "model": model,
        "options": {},
        "ranks": 2,
        "data": str(data),
        "settings": {"batch_size": 64, "mix_row_groups": 3, "dedup": [["history"]], **(settings or {})},
        "trainer": {"max_epochs": 2},
        "saves": {"every_n_train_steps": 3},
        "cuts": cuts,
    }
    return defaults | changes


def run(folder: Path, setups: list[Any]) -> dict[str, Any]:
    """What the runs differ in, and what they trained on."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.lightning.sharded_runs", json.dumps({"folder": str(folder), "setups": setups})],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


def losses(folder: Path, setup: int) -> list[list[float]]:
    """Of each rank, of the unbroken run."""
    files = [folder / str(setup) / f"whole-{rank}.jsonl" for rank in range(2)]
    return [[json.loads(line)[2] for line in file.read_text().splitlines()] for file in files]
