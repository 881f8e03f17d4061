"""Runs of the examples of sharded tables on two ranks, killed and resumed: what they are told, and how they ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.started import ROOT, console, synth_sessions, told_by

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
    return told_by("tests.lightning.sharded_runs", json.dumps({"folder": str(folder), "setups": setups}))


def losses(folder: Path, setup: int) -> list[list[float]]:
    """Of each rank, of the unbroken run."""
    files = [folder / str(setup) / f"whole-{rank}.jsonl" for rank in range(2)]
    return [[json.loads(line)[2] for line in file.read_text().splitlines()] for file in files]


def trains_and_resumes(folder: Path, example: str) -> None:
    """As its README says, with less data: an epoch on two ranks, and from its checkpoint another."""
    synth_sessions(folder)
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    fit = ["fit", "--config", str(ROOT / "examples" / example / "run.yaml"), *quiet]
    assert "Starting with 2 processes" in console(folder, *fit, "--trainer.max_epochs", "1")
    [saved] = folder.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert saved.name == "epoch=0-step=12.ckpt"  # 6,000 rows a rank in batches of 512
    assert Path(f"{saved}.shards").is_dir()
    more = ["--ckpt_path", str(saved), "--weights_only", "false"]
    assert "max_epochs=2" in console(folder, *fit, "--trainer.max_epochs", "2", *more)
