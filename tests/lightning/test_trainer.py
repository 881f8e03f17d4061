"""Beside whatever else a Trainer does, the callback and the DataModule work, and change no loss."""

from __future__ import annotations

import pickle
import sys
import threading
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from lightning_intune import InTuneCallback, InTuneDataModule, elastic
from lightning_intune.config import Schema
from lightning_intune.dedup.jagged import Batch
from lightning_intune.errors import ConfigError
from tests.lightning.conftest import NUM_ROWS, Clicks, Validated, trainer


@pytest.fixture
def data(clicks: Path, schema: Schema) -> Any:
    def make(**settings: Any) -> InTuneDataModule:
        return InTuneDataModule(schema, **{"train": str(clicks), "batch_size": 200, **settings})

    return make


def fit(folder: Path, model: Any, *loaders: Any, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    run = trainer(folder, callbacks=callbacks, **options)
    run.fit(model, *loaders)
    return run


def busy_tuner() -> InTuneCallback:
    return InTuneCallback(turn_interval_s=0.01)


def both(folder: Path, model: Any, loaders: Any, others: Any = list, **options: Any) -> tuple[Any, Any]:
    """The same run without the callback and with it; `model`, `loaders` and `others` make new ones."""
    models: list[Any] = []
    for tuners in ([], [busy_tuner()]):
        torch.manual_seed(0)
        models.append(model())
        fit(folder, models[-1], loaders(), callbacks=[*tuners, *others()], **options)
    return tuple(models)


def test_with_checkpoints_early_stopping_accumulation_and_validation_within_the_epoch(
    clicks: Path, data: Any, tmp_path: Path
) -> None:
    runs = count()

    def others() -> list[pl.Callback]:
        best = ModelCheckpoint(dirpath=tmp_path / f"run{next(runs)}", monitor="val_loss")
        return [best, EarlyStopping("val_loss", patience=2, min_delta=1.0)]  # nothing gets better by 1: third check

    plain, tuned = both(
        tmp_path,
        Validated,
        lambda: data(val=str(clicks / "part-1.parquet")),
        others,
        max_epochs=4,
        accumulate_grad_batches=3,
        val_check_interval=0.5,
        enable_checkpointing=True,
    )
    assert tuned.rows == plain.rows
    assert tuned.losses == plain.losses
    assert len(plain.rows) == 45  # 30 batches an epoch, checked at every 15th: stopped at the third check
    assert tuned.trainer.checkpoint_callback.best_model_score is not None


class Manual(Clicks):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


@pytest.mark.parametrize(
    ("model", "options"),
    [(Manual, {}), (Clicks, {"precision": "bf16-mixed"}), (Clicks, {"limit_train_batches": 0.5, "max_epochs": 2})],
    ids=["manual optimisation", "bf16-mixed", "limit_train_batches"],
)
def test_losses_are_the_same_with_and_without_the_callback(
    model: Any, options: dict[str, Any], data: Any, tmp_path: Path
) -> None:
    plain, tuned = both(tmp_path, model, data, **options)
    assert len(tuned.losses) == 30
    assert tuned.losses == plain.losses
    assert tuned.rows == plain.rows


def test_a_fast_dev_run_ends_after_one_batch(clicks: Path, data: Any, tmp_path: Path) -> None:
    model = Validated()
    fit(tmp_path, model, data(val=str(clicks)), callbacks=[busy_tuner()], fast_dev_run=True)
    assert len(model.rows) == 1


def test_overfitting_trains_on_the_same_batches_every_epoch(clicks: Path, data: Any, tmp_path: Path) -> None:
    model = Validated()
    fit(tmp_path, model, data(val=str(clicks)), callbacks=[busy_tuner()], overfit_batches=3, max_epochs=3)
    assert model.rows == model.rows[:3] * 3
    assert model.rows[0] != model.rows[1]


class Rows(pl.LightningModule):
    """Remembers the first number of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(int(batch[0][0]))
        return self.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_shuffled_dataloader_made_elastic_overfits_one_epochs_batches(tmp_path: Path) -> None:
    model = Rows()
    with elastic(DataLoader(TensorDataset(torch.arange(100)), batch_size=2, shuffle=True)) as loader:
        fit(tmp_path, model, loader, callbacks=[busy_tuner()], overfit_batches=4, max_epochs=2)
    assert len(set(model.seen)) == 4


class Pairs(Clicks):
    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["few"], batch_idx) + super().training_step(batch["many"], batch_idx)


@pytest.mark.parametrize(("mode", "steps"), [("min_size", 12), ("max_size_cycle", 30)])
def test_several_loaders_are_each_tuned_under_their_names(mode: Any, steps: int, data: Any, tmp_path: Path) -> None:
    few, many = data(batch_size=500), data()
    model, tuner = Pairs(), InTuneCallback(turn_interval_s=0.01, warm_start={"few/read": 3, "prefetch": 2})
    logger = CSVLogger(tmp_path)
    with few.train_dataloader() as first, many.train_dataloader() as second:
        loaders = CombinedLoader({"few": first, "many": second}, mode)
        fit(tmp_path, model, loaders, callbacks=[tuner], logger=logger, log_every_n_steps=5)
    assert len(model.rows) == 2 * steps
    stages = ("read", "transform", "prefetch")
    assert set(tuner.widths) == {f"{loader}/{stage}" for loader in ("few", "many") for stage in stages}
    assert "intune/few/samples_per_s" in Path(logger.log_dir, "metrics.csv").read_text()


def test_loaders_may_be_arguments_of_fit_and_validation_test_and_prediction_share_the_module(
    clicks: Path, data: Any, tmp_path: Path
) -> None:
    class All(Validated):
        def test_step(self, batch: Batch, batch_idx: int) -> None:
            self.log("test_loss", self.loss(batch), batch_size=len(batch))

        def predict_step(self, batch: Batch, batch_idx: int) -> int:
            return len(batch)

    module = data(val=str(clicks), test=str(clicks), predict=str(clicks))
    model = All()
    with module.train_dataloader() as train, module.val_dataloader() as val:
        run = fit(tmp_path, model, train, val, callbacks=[busy_tuner()])
    assert len(model.rows) == 30
    [validated], [tested] = run.validate(model, module, verbose=False), run.test(model, module, verbose=False)
    assert validated["val_loss"] == tested["test_loss"]
    assert sum(run.predict(model, module)) == NUM_ROWS  # pyright: ignore[reportArgumentType]


def test_a_compiled_module_trains_as_an_eager_one(data: Any, tmp_path: Path) -> None:
    class Quiet(Clicks):
        """Writes nothing down where the compiler looks."""

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

        def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
            self.losses.append(float(outputs["loss"]))

    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Quiet()
        # Dynamo looks at every line; what its inductor makes of them is torch's, and takes minutes here.
        target: Any = torch.compile(model, backend="eager") if compiled else model
        fit(tmp_path, target, data(), callbacks=[busy_tuner()], limit_train_batches=6)
        losses.append(model.losses)
    assert len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0])


def test_settings_go_through_pickle_as_ddp_spawn_and_notebooks_send_them(data: Any, tmp_path: Path) -> None:
    module, tuner = pickle.loads(pickle.dumps((data(), InTuneCallback(turn_interval_s=0.01, agent="hill"))))
    model = Clicks()
    fit(tmp_path, model, module, callbacks=[tuner])
    assert len(model.rows) == 30
    again = pickle.loads(pickle.dumps((module, tuner)))  # after a run, too
    assert [type(part) for part in again] == [InTuneDataModule, InTuneCallback]


def test_ctrl_c_in_training_leaves_no_worker(data: Any, tmp_path: Path) -> None:
    class Interrupted(Clicks):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            if batch_idx == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    before = set(threading.enumerate())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Interrupted(), module := data(), callbacks=[busy_tuner()])
    assert set(threading.enumerate()) <= before
    assert module.trainer is not None
    # Nor is a tuner told of whatever the loader is used for next.
    assert module.trainer.train_dataloader.on_step is None


def test_a_datamodule_tells_a_pytorch_lightning_trainer_what_to_do(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", package)
    theirs = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer"})
    with pytest.raises(ConfigError, match=r"Import Trainer and LightningModule from lightning\.pytorch"):
        data().trainer = theirs()
