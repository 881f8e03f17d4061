"""Whatever logger a Trainer has gets the same scalars."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger, mlflow, wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from tests.lightning.conftest import Clicks, Validated, trainer

Scalars = dict[tuple[str, int], float]


class WandbRun:
    """What WandbLogger needs of a run; wandb refuses a step that goes backwards."""

    def __init__(self) -> None:
        self.scalars: Scalars = {}
        self.id = "run1"
        self.config = SimpleNamespace(update=lambda *_, **__: None)
        self.step = 0

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def watch(self, *_: Any, **__: Any) -> None: ...

    def log(self, values: dict[str, Any]) -> None:
        step = int(values.pop("trainer/global_step"))
        assert step >= self.step, "wandb drops what comes late"
        self.step = step
        self.scalars |= {(name, step): float(value) for name, value in values.items()}


class MlflowClient:
    """What MLFlowLogger needs of mlflow's client."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.scalars: Scalars = {}

    def get_experiment_by_name(self, _: str) -> Any:
        return SimpleNamespace(experiment_id="0", lifecycle_stage="active")

    def create_run(self, **_: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="1", artifact_uri="", experiment_id="0"))

    def log_batch(self, run_id: str, metrics: Any = (), **_: Any) -> None:
        self.scalars |= {(metric.key, metric.step): metric.value for metric in metrics}

    def get_run(self, _: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(status="RUNNING"))

    def set_terminated(self, *_: Any) -> None: ...


@pytest.fixture
def mlflow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFlowLogger with our client, and without mlflow."""
    package, entities, tracking = ModuleType("mlflow"), ModuleType("mlflow.entities"), ModuleType("mlflow.tracking")
    entities.Metric = entities.Param = SimpleNamespace  # type: ignore[attr-defined]
    tracking.MlflowClient = MlflowClient  # type: ignore[attr-defined]
    package.set_tracking_uri = str  # type: ignore[attr-defined]
    for module in (package, entities, tracking):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(mlflow, "_get_resolve_tags", lambda: lambda tags: tags or {})


@pytest.fixture
def wandb_run(monkeypatch: pytest.MonkeyPatch) -> WandbRun:
    package, lib = ModuleType("wandb"), ModuleType("wandb.sdk.lib")
    run, disabled = ModuleType("wandb.wandb_run"), ModuleType("wandb.sdk")
    lib.RunDisabled = run.Run = WandbRun  # type: ignore[attr-defined]
    package.run = None  # type: ignore[attr-defined]
    for module in (package, disabled, lib, run):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", True)
    return WandbRun()


def ours(scalars: Scalars) -> Scalars:
    return {key: value for key, value in scalars.items() if key[0].startswith("intune/") and "/final/" not in key[0]}


def from_csv(path: Path) -> Scalars:
    with path.open() as file:
        return {
            (name, int(row["step"])): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if name != "step" and value
        }


@pytest.mark.usefixtures("mlflow_client")
def test_every_logger_gets_the_same_scalars(clicks: Path, schema: Schema, tmp_path: Path, wandb_run: WandbRun) -> None:
    board, table = TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "table")
    theirs = WandbLogger(save_dir=tmp_path, experiment=wandb_run), MLFlowLogger("clicks", tracking_uri="file:none")
    data = InTuneDataModule(schema, str(clicks), val=str(clicks), batch_size=50)
    options: Any = {"max_epochs": 2, "log_every_n_steps": 50, "logger": [board, table, *theirs]}
    trainer(tmp_path, callbacks=[InTuneCallback(turn_interval_s=0.01)], **options).fit(Validated(), data)
    board.finalize("success")
    found = from_csv(Path(table.log_dir) / "metrics.csv")
    assert {("intune/samples_per_s", step) for name, step in found if name == "intune/reward"} <= set(found)
    assert any(name.startswith("intune/val/width/") for name, _ in found)
    assert ours(wandb_run.scalars) == pytest.approx(ours(found))
    assert ours(theirs[1].experiment.scalars) == pytest.approx(ours(found))
    events = EventAccumulator(board.log_dir)
    events.Reload()
    shown = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert ours(shown) == pytest.approx(ours(found), rel=1e-6)


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_our_scalars_stand_at_the_steps_of_lightnings_own(
    clicks: Path, schema: Schema, tmp_path: Path, wandb_run: WandbRun, interval: float
) -> None:
    logger = WandbLogger(save_dir=tmp_path, experiment=wandb_run)
    data = InTuneDataModule(schema, str(clicks), val=str(clicks), batch_size=50)
    options: Any = {"max_epochs": 2, "log_every_n_steps": 1, "val_check_interval": interval, "logger": logger}
    tuner = InTuneCallback(agent="hill", turn_interval_s=1e-6)  # a turn at every batch, validation's last one included
    trainer(tmp_path, callbacks=[tuner], **options).fit(Validated(), data)
    steps = {name: {at for key, at in wandb_run.scalars if key == name} for name, _ in wandb_run.scalars}
    assert steps["intune/val/samples_per_s"] == steps["val_loss"]
    assert 1 < len(steps["intune/samples_per_s"]) <= len(tuner.history)
    assert max(steps["intune/samples_per_s"]) <= max(steps["val_loss"])


def test_hyper_parameters_stand_with_the_final_figures(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    class Named(Clicks):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"learning_rate": 0.1})

    logger, tuner = TensorBoardLogger(tmp_path), InTuneCallback(turn_interval_s=0.01, agent="hill", seed=3)
    data = InTuneDataModule(schema, str(clicks), batch_size=50)
    trainer(tmp_path, callbacks=[tuner], logger=logger, log_every_n_steps=50).fit(Named(), data)
    logger.finalize("success")
    # The model's own record comes first, and TensorBoard keeps but one of a run: ours is a run beside it.
    events = EventAccumulator(str(Path(logger.log_dir) / "intune"))
    events.Reload()
    last = tuner.history[-1]
    for key, value in (("samples_per_s", last.samples_per_s), ("wait_share", last.wait_share)):
        assert events.Scalars(f"intune/final/{key}")[-1].value == pytest.approx(value, rel=1e-6)
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert shown["learning_rate"].number_value == 0.1
    assert shown["intune/agent"].string_value == "hill"
    assert shown["intune/seed"].number_value == 3


def test_the_rich_progress_bar_shows_samples_wait_and_widths(
    clicks: Path, schema: Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner, bar = InTuneCallback(turn_interval_s=0.01), RichProgressBar()
    seen: list[dict[str, Any]] = []

    class Watched(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(bar.get_metrics(self.trainer, self))

    torch.manual_seed(0)
    data = InTuneDataModule(schema, str(clicks), batch_size=50)
    trainer(tmp_path, callbacks=[tuner, bar], enable_progress_bar=True).fit(Watched(), data)
    assert {"samples/s", "data wait", "widths"} <= set(seen[-1])
    assert "samples/s" in capsys.readouterr().out
    assert "get_metrics" not in vars(bar)
