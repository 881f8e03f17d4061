"""The example on two ranks, as its README tells a user to run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.started import ROOT, console, synth_sessions

pytest.importorskip("torchrec")
pytest.importorskip("duckdb")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_train_on_deduplicated_sessions_and_resume(tmp_path: Path) -> None:
    def scalars(folder: Path) -> dict[str, float]:
        """The last window's bubbles."""
        board = EventAccumulator(str(folder))
        board.Reload()
        head = "intune/bubble/"
        tags = [tag for tag in board.Tags()["scalars"] if tag.startswith(head)]
        return {tag.removeprefix(head): board.Scalars(tag)[-1].value for tag in tags}

    def fit(*more: str) -> str:
        config = str(ROOT / "examples/ddp_sessions/run.yaml")
        quick = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
        ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        return console(tmp_path, "fit", "--config", config, *quick, *ranks, *more)

    synth_sessions(tmp_path)
    text = fit("--trainer.max_epochs", "1")
    assert "Starting with 2 processes" in text
    assert "| transform |" in text
    [saved] = tmp_path.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    assert saved.name == "epoch=0-step=12.ckpt"  # 692 sessions, some cut by a row group's end, 2 x 32 a step
    bubbles = scalars(saved.parent.parent)
    assert bubbles["planned"] < 0.02  # 0.07 in mode off
    assert 0 <= bubbles["measured"] < 1
    assert {bubbles["waited_rank"], bubbles["waited_for_rank"]} == {0.0, 1.0}
    resumed = fit("--trainer.max_epochs", "2", "--ckpt_path", str(saved))
    assert "max_epochs=2" in resumed
    assert "litlogger" not in text
