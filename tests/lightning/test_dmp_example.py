"""TorchRec's DistributedModelParallel and TrainPipelineSparseDist on two ranks, killed and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lightning.sharded_setups import NUM_ROWS, ROOT, losses, run, setup, write_sessions

pytest.importorskip("torchrec")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sessions(tmp_path_factory.mktemp("sessions"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_run_resumes_behind_the_last_batch_that_the_pipeline_has_trained_on(
    sessions: Path, tmp_path: Path
) -> None:
    """Cut within the epoch, at its end, where the last step trains three batches, in a save, in a validation."""
    often = {"every_n_train_steps": 1}
    result = run(
        tmp_path,
        [
            setup("torchrec_dmp", sessions, [("step", 8), ("step", 12), ("step", 13), ("saved", 5)], saves=often),
            setup("torchrec_dmp", sessions, [("validation", 15)], trainer={"max_epochs": 2, "val_check_interval": 4}),
            setup(
                "torchrec_dmp", sessions, [("step", 14)], {"filters": [["row", ">=", 0]]}, saves=often
            ),  # without len
            setup(
                "torchrec_dmp",
                sessions,
                [("step", 16)],
                trainer={"max_epochs": 3, "limit_train_batches": 7},
                saves=often,
            ),
            setup("torchrec_dmp", sessions, [("step", 13)], saves={"every_n_epochs": 1}),
        ],
    )
    assert result["differences"] == []
    everything = [list(range(NUM_ROWS))] * 2
    assert [result["trained"][at] for at in (0, 1, 2, 4)] == [everything] * 4
    assert [len(rows) for rows in result["trained"][3]] == [2 * 7 * 64] * 3


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_deduplicated_input_trains_as_expanded_input_does(sessions: Path, tmp_path: Path) -> None:
    run(
        tmp_path,
        [setup("torchrec_dmp", sessions, [], {"shuffle": False, "dedup": groups}) for groups in ([["history"]], None)],
    )
    once, expanded = losses(tmp_path, 0), losses(tmp_path, 1)
    assert [len(rank) for rank in once] == [24, 24]
    assert once == [pytest.approx(rank, abs=1e-5) for rank in expanded]
    assert len({round(loss, 3) for loss in once[0]}) > 12  # it learns


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_readmes_commands_train_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")

    def command(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "lightning_intune.console", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout + ended.stderr

    command("synth", "sessions.parquet", "--rows", "12000", "--row-group-rows", "1000", "--quiet")
    command("synth", "sessions-val.parquet", "--rows", "3000", "--row-group-rows", "500", "--seed", "1", "--quiet")
    config = ["--config", str(ROOT / "examples/torchrec_dmp/run.yaml"), "--trainer.accelerator", "cpu"]
    quiet = ["--trainer.enable_progress_bar", "false"]
    text = command("fit", *config, *quiet, "--trainer.devices", "2", "--trainer.max_epochs", "1")
    assert "Starting with 2 processes" in text
    [saved] = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert saved.name == "epoch=0-step=12.ckpt"  # 6,000 rows a rank in batches of 512
    assert Path(f"{saved}.shards").is_dir()
    more = ["--ckpt_path", str(saved), "--weights_only", "false"]
    resumed = command("fit", *config, *quiet, "--trainer.devices", "2", "--trainer.max_epochs", "2", *more)
    assert "max_epochs=2" in resumed
