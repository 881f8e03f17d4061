"""Validation, test and prediction loaders are tuned beside training's, and nobody pays for another's time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch.utils.data import DataLoader

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from lightning_intune.control import BudgetReading, make_agent
from lightning_intune.dedup.jagged import Batch
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from lightning_intune.tuned import TunedLoader, TunerSettings
from lightning_intune.tuned_loaders import TunedLoaders
from tests.lightning.conftest import NUM_ROWS, Validated, trainer

STAGES = ("read", "transform", "prefetch")


class All(Validated):
    """Validates, tests and predicts; remembers how many rows each saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {"val": 0, "test": 0, "predict": 0}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["val"] += len(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["test"] += len(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> int:
        self.seen["predict"] += len(batch)
        return len(batch)


@pytest.fixture
def data(clicks: Path, schema: Schema) -> Callable[..., InTuneDataModule]:
    def make(**settings: Any) -> InTuneDataModule:
        return InTuneDataModule(schema, **{"train": str(clicks), "batch_size": 60, **settings})

    return make


def busy_tuner(**settings: Any) -> InTuneCallback:
    return InTuneCallback(turn_interval_s=0.01, **settings)


def test_a_validation_loader_is_tuned_beside_the_training_loader(clicks: Path, data: Any, tmp_path: Path) -> None:
    tuner, logger = busy_tuner(), TensorBoardLogger(tmp_path)
    run = trainer(tmp_path, callbacks=[tuner], logger=logger, max_epochs=3, log_every_n_steps=50)
    model = All()
    run.fit(model, data(val=str(clicks)))
    assert model.seen["val"] == 3 * NUM_ROWS
    assert set(tuner.widths) == {*STAGES, *(f"val/{stage}" for stage in STAGES)}
    lines = [json.loads(line) for line in (Path(logger.log_dir) / "intune_decisions.jsonl").read_text().splitlines()]
    assert {line["loader"] for line in lines} == {"", "val"}
    assert sum(line["loader"] == "" for line in lines) == len(tuner.history)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    # Many turns of a validation share one training step: the last of them stands for it.
    assert 1 <= len(events.Scalars("intune/val/samples_per_s")) <= 3
    assert "intune/val/summary/text_summary" in events.summary_metadata
    # TensorBoard reads one layout of a run, the first.
    [layout] = events.Tensors("custom_scalars__config__")
    page = tensor_util.make_ndarray(layout.tensor_proto).item()
    assert b"lightning_intune val" in page
    assert b"intune/val/width/read" in page
    assert b"intune/width/read" in page
    assert tuner.report().count("| transform |") == 2


def test_test_and_prediction_are_tuned_without_a_fit(clicks: Path, data: Any, tmp_path: Path) -> None:
    tuner, model = busy_tuner(), All()
    run = trainer(tmp_path, callbacks=[tuner])
    module = data(val=str(clicks), test=str(clicks), predict=str(clicks))
    run.validate(model, module, verbose=False)
    run.test(model, module, verbose=False)
    run.predict(model, module, return_predictions=False)
    assert model.seen == {"val": NUM_ROWS, "test": NUM_ROWS, "predict": NUM_ROWS}
    assert set(tuner.widths) == {f"{split}/{stage}" for split in ("val", "test", "predict") for stage in STAGES}
    assert not tuner.history


def test_of_several_validation_loaders_the_one_in_use_is_tuned(clicks: Path, data: Any, tmp_path: Path) -> None:
    first, second = data(val=str(clicks / "part-0.parquet")), data(val=str(clicks / "part-1.parquet"))
    plain = DataLoader(range(3), collate_fn=lambda rows: Rows(len(rows)))
    tuner, model = busy_tuner(), All()
    with first.val_dataloader() as left, second.val_dataloader() as right, data().train_dataloader() as train:
        run = trainer(tmp_path, callbacks=[tuner], max_epochs=2)
        run.fit(model, train, [left, plain, right])
        assert [loader.stats().num_batches for loader in (left, right)] == [2 * 50, 2 * 50]
    assert set(tuner.widths) == {*STAGES, *(f"val/{at}/{stage}" for at in (0, 2) for stage in STAGES)}


def test_while_a_model_validates_nobody_is_told_of_steps_of_training(clicks: Path, data: Any, tmp_path: Path) -> None:
    told: dict[str, set[bool]] = {"fit": set(), "val": set()}
    with data().train_dataloader() as loader, data(val=str(clicks)).val_dataloader() as other:

        class Asking(All):
            def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
                told["fit"].add(loader.on_step is not None)
                return super().training_step(batch, batch_idx)

            def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
                told["val"].add(loader.on_step is not None)

        trainer(tmp_path, callbacks=[busy_tuner()], max_epochs=2, num_sanity_val_steps=0).fit(Asking(), loader, other)
        assert told == {"fit": {True}, "val": {False}}
        assert loader.on_step is None  # the run is over


class Rows:
    """A batch of nothing but a length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def test_losses_are_the_same_with_and_without_a_tuned_validation(clicks: Path, data: Any, tmp_path: Path) -> None:
    runs = []
    for tuners in ([], [busy_tuner()]):
        torch.manual_seed(0)
        logger = CSVLogger(tmp_path, version=len(tuners))
        model = Validated()
        options = {"max_epochs": 2, "val_check_interval": 0.25, "num_sanity_val_steps": 2, "log_every_n_steps": 10}
        trainer(tmp_path, callbacks=tuners, logger=logger, **options).fit(model, data(val=str(clicks)))
        lines = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
        place = lines[0].split(",").index("val_loss")
        runs.append((model.losses, [line.split(",")[place] for line in lines[1:] if line.split(",")[place]]))
    assert runs[0] == runs[1]
    assert len(runs[0][1]) == 8


def test_a_former_runs_widths_begin_training_and_validation_alike(clicks: Path, data: Any, tmp_path: Path) -> None:
    found = {"read": 2, "transform": 3, "prefetch": 4, "val/read": 5, "val/transform": 2, "val/prefetch": 7}
    module = data(val=str(clicks))
    run = trainer(tmp_path, callbacks=[InTuneCallback(warm_start=found, turn_interval_s=1e6)], max_epochs=3)
    run.fit(Validated(), module)  # too short for a turn, however busy the machine
    widths = {
        split: [stage.knob.target() for stage in module.loaders[split].stages.values()] for split in module.loaders
    }
    assert widths == {"train": [2, 3, 4], "val": [5, 2, 7]}


def loader(*names: str) -> ElasticLoader[int]:
    node: Any = IterableSource(range(100))
    for name in names:
        node = ElasticMapper(node, int, 1, name=name)
    return ElasticLoader(node)


def settings(budget: Any = None, agent: str = "static") -> TunerSettings:
    return TunerSettings(
        new_agent=lambda: make_agent(agent),  # pyright: ignore[reportArgumentType]
        budget=budget or Fixed(),
        objective="throughput",
        turn_interval_s=0.5,
        seed=0,
    )


class Fixed:
    """A machine whose jobs have used `busy_s` CPU seconds."""

    def __init__(self) -> None:
        self.busy_s = 100.0

    def read(self) -> BudgetReading:
        return BudgetReading(
            cpus=2.0, memory_bytes=1, memory_limit_bytes=10**9, allowed_cpus=2, host_busy_s=self.busy_s
        )


def test_bare_names_go_for_every_loader_that_has_such_a_stage_and_others_are_refused_in_training() -> None:
    tuned = TunedLoaders(settings(), {"read": 3, "val/decode": 2, "decode": 4, "test/none": 9})
    tuned.watch("", loader("read", "decode"))
    tuned.watch("val", [loader("read"), loader("decode")])
    assert list(tuned) == ["", "val/0", "val/1"]
    with pytest.raises(ConfigError, match="warm_start names 'shuffle'"):
        TunedLoaders(settings(), {"shuffle": 3}).watch("", loader("read"))
    TunedLoaders(settings(), {"shuffle": 3, "few/read": 2}).watch("val", loader("read"))


def test_the_same_loader_keeps_its_tuner_and_another_gets_its_own() -> None:
    tuned, val = TunedLoaders(settings(), None), loader("read")
    tuned.watch("val", val)
    before = tuned["val"]
    assert tuned.watch("val", val) == ["val"]
    assert tuned["val"] is before
    tuned.watch("val", loader("read"))
    assert tuned["val"] is not before
    assert tuned.watch("test", [DataLoader(range(2)), val]) == [None, "test/1"]


@given(spans=st.lists(st.tuples(st.booleans(), st.integers(1, 50), st.integers(0, 90)), max_size=12))
def test_what_passes_in_a_pause_counts_for_nobody(spans: list[tuple[bool, int, int]]) -> None:
    """`spans`: (runs or pauses, seconds, CPU seconds that the machine's jobs use meanwhile)."""
    time_s, machine = [0.0], Fixed()
    tuned = TunedLoader(loader("read"), settings(machine), clock=lambda: time_s[0])
    meters = tuned._meters
    begun = meters.clock(), meters.read().host_busy_s
    counted_s = counted_busy_s = 0.0
    for runs, seconds, busy_s in spans:
        (tuned.resume if runs else tuned.pause)()
        time_s[0] += seconds
        machine.busy_s += busy_s
        counted_s += seconds if runs else 0
        counted_busy_s += busy_s if runs else 0
    tuned.resume()
    assert meters.clock() - begun[0] == pytest.approx(counted_s)
    assert meters.read().host_busy_s - begun[1] == pytest.approx(counted_busy_s)
