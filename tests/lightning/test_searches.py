"""Lightning's searches before a fit, loaders that are made anew within one, and number types that are no mixture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from lightning_intune import InTuneCallback, InTuneDataModule, elastic
from lightning_intune.config import Schema
from lightning_intune.errors import ConfigError
from tests.lightning.conftest import Clicks, Validated, trainer

Make = Callable[..., InTuneDataModule]

pytestmark = [
    # Lightning's own, of its searches and of half precision on a CPU.
    pytest.mark.filterwarnings("ignore:.*`weights_only` was not set"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"),
]


@pytest.fixture
def data(clicks: Path, schema: Schema) -> Make:
    def make(**settings: Any) -> InTuneDataModule:
        return InTuneDataModule(schema, **{"train": str(clicks), "val": str(clicks), "batch_size": 200, **settings})

    return make


def busy_tuner() -> InTuneCallback:
    return InTuneCallback(agent="hill", turn_interval_s=0.01)


class Searched(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.1


@pytest.mark.parametrize("tuners", [list, lambda: [busy_tuner()]], ids=["alone", "with the callback"])
def test_a_fit_after_a_search_for_the_learning_rate_sees_every_row_of_its_epoch(
    tuners: Any, data: Make, tmp_path: Path
) -> None:
    run, model, module = trainer(tmp_path, callbacks=tuners()), Searched(), data()
    Tuner(run).lr_find(model, datamodule=module, num_training=5, update_attr=False)
    model.rows.clear()
    run.fit(model, module)
    assert sorted(row for rows in model.rows for row in rows) == list(range(6000))


def test_the_batch_size_that_was_found_is_the_one_that_is_trained_with(data: Make, tmp_path: Path) -> None:
    run, model, module = trainer(tmp_path, callbacks=[busy_tuner()]), Searched(), data(batch_size=100)
    Tuner(run).scale_batch_size(model, datamodule=module, max_trials=2, init_val=100, steps_per_trial=2)
    assert [len(rows) for rows in model.rows] == [100, 100, 200, 200]
    assert module.batch_size == 200
    model.rows.clear()
    run.fit(model, module)
    assert [len(rows) for rows in model.rows] == 30 * [200]


def test_a_batch_size_that_makes_no_batch_is_refused_whenever_it_is_set(data: Make) -> None:
    module = data()
    with pytest.raises(ConfigError, match="batch_size=0 makes no batch"):
        module.batch_size = 0
    assert module.batch_size == 200


class Reloading(pl.LightningDataModule):
    """Another loader at every asking, as `reload_dataloaders_every_n_epochs` is there for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def train_dataloader(self) -> Any:
        self.made.append(elastic(DataLoader(TensorDataset(torch.arange(100)), batch_size=5, shuffle=True)))
        return self.made[-1]


class Numbers(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0].tolist())
        return self.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_loader_made_anew_is_tuned_with_what_was_learnt_and_the_one_before_is_ended(tmp_path: Path) -> None:
    runs: list[Numbers] = []
    tuner = InTuneCallback(agent="hill", turn_interval_s=1e-6)  # a turn at every few batches
    for tuners in ([], [tuner]):
        torch.manual_seed(0)
        module = Reloading()
        runs.append(Numbers())
        before = set(threading.enumerate())
        trainer(tmp_path, callbacks=tuners, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(runs[-1], module)
        for loader in [] if tuners else module.made:
            loader.shutdown()  # without the callback, its maker's duty
        assert set(threading.enumerate()) <= before
        assert len(module.made) == 3
    assert runs[0].seen == runs[1].seen
    turns = [decision.turn for decision in tuner.history]
    assert turns == list(range(len(turns)))  # one history, though there were three loaders
    assert len(turns) > 20 / 2


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_batches_come_in_the_models_own_number_type(precision: Any, data: Make, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Typed(Clicks):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.update({batch.dense.dtype, batch.labels.dtype})
            return super().training_step(batch, batch_idx)

    model = Typed()
    trainer(tmp_path, callbacks=[busy_tuner()], precision=precision, limit_train_batches=3).fit(model, data(val=None))
    assert seen == {torch.bfloat16 if precision == "bf16-true" else torch.float64}
    assert len(model.losses) == 3
