"""Where a run's own files go, and that steps are not charged for hooks in which nothing is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from lightning_intune.journal import run_folder
from tests.lightning.conftest import Clicks, trainer


def test_a_runs_files_lie_with_its_logger_and_without_one_in_the_root_folder(
    clicks: Path, schema: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    logger = CSVLogger(tmp_path / "logs")
    for kind in (False, logger):
        tuner = InTuneCallback(agent="hill", turn_interval_s=0.01)
        run = trainer(tmp_path / "root", callbacks=[tuner], logger=kind, log_every_n_steps=5)
        run.fit(Clicks(), InTuneDataModule(schema, str(clicks), batch_size=200))
    for folder in (tmp_path / "root", Path(logger.log_dir)):
        assert {path.name for path in folder.glob("intune_*")} == {"intune_decisions.jsonl", "intune_widths.yaml"}
    assert not list((tmp_path / "here").iterdir())


def fake(logger: Any = None, root: str = "/root-dir", fast: int = 0) -> Any:
    return SimpleNamespace(loggers=[] if logger is None else [logger], default_root_dir=root, fast_dev_run=fast)


@pytest.mark.parametrize(
    ("trainer_like", "folder"),
    [
        (fake(SimpleNamespace(save_dir="/w", name="clicks", version="ab12")), "/w/clicks/ab12"),  # W&B
        (
            fake(SimpleNamespace(save_dir=None, name="clicks", version=3)),
            "/root-dir/clicks/version_3",
        ),  # MLflow's server
        (fake(SimpleNamespace(log_dir="s3://bucket/logs")), "/root-dir"),
        (fake(SimpleNamespace(log_dir="s3://bucket/logs"), root="gs://bucket"), None),
        (fake(fast=1), None),
    ],
)
def test_other_loggers_have_folders_as_lightnings_checkpoints_do(trainer_like: Any, folder: str | None) -> None:
    assert run_folder(trainer_like) == (None if folder is None else Path(folder))


def test_a_fast_dev_run_leaves_no_file(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[InTuneCallback(agent="hill", turn_interval_s=1e-6)], fast_dev_run=8)
    run.fit(Clicks(), InTuneDataModule(schema, str(clicks), batch_size=200))
    assert not list(tmp_path.iterdir())


def test_lightning_calls_no_hook_in_which_nothing_is_done_and_all_are_there_again_behind_the_run(
    clicks: Path, schema: Schema, tmp_path: Path
) -> None:
    spared = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
    tuner = InTuneCallback(agent="hill", turn_interval_s=0.01)

    class Looking(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert not any(callable(getattr(tuner, hook)) for hook in spared)

    model = Looking()
    trainer(tmp_path, callbacks=[tuner]).fit(model, InTuneDataModule(schema, str(clicks), batch_size=200))
    assert len(model.rows) == 30
    assert all(callable(getattr(tuner, hook)) for hook in spared)
