"""InTuneDataModule and InTuneCallback in a real Trainer."""

from __future__ import annotations

import contextlib
import json
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema
from lightning_intune.control.widths_file import load_widths
from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from tests.lightning.conftest import NUM_ROWS, Clicks, Validated, trainer


class Idle(pl.LightningModule):
    """Takes any batch and learns nothing from it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, data: Any, *callbacks: pl.Callback, kind: type[Clicks] = Clicks, **options: Any) -> Clicks:
    torch.manual_seed(0)
    model = kind()
    trainer(folder, callbacks=list(callbacks), **options).fit(model, data)
    return model


def test_every_row_is_trained_once_per_epoch_and_epochs_differ(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    model = fit(tmp_path, InTuneDataModule(schema, str(clicks), batch_size=700), max_epochs=2)
    steps = len(model.rows) // 2
    assert steps == -(-NUM_ROWS // 700)
    first = [row for batch in model.rows[:steps] for row in batch]
    second = [row for batch in model.rows[steps:] for row in batch]
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second


def test_a_shuffled_batch_draws_from_several_row_groups(clicks: Path, schema: Schema) -> None:
    def row_groups(mix_row_groups: int) -> int:
        data = InTuneDataModule(schema, str(clicks), batch_size=400, mix_row_groups=mix_row_groups)
        with data.train_dataloader() as loader:
            return len({int(row) // 500 for row in next(iter(loader)).dense[:, 0]})

    assert row_groups(1) == 1
    assert row_groups(8) == 8


def test_tuning_changes_no_batch_and_no_loss(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    plain = fit(tmp_path, InTuneDataModule(schema, str(clicks), batch_size=256), max_epochs=3)
    callback = InTuneCallback(turn_interval_s=0.02)
    tuned = fit(tmp_path, InTuneDataModule(schema, str(clicks), batch_size=256), callback, max_epochs=3)
    assert callback.history
    assert any(turn.widths != turn.asked for turn in callback.history)
    assert tuned.rows == plain.rows
    assert tuned.losses == plain.losses


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # on purpose: two runs, two folders
def test_a_run_stopped_mid_epoch_resumes_with_the_next_batch(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    whole = fit(tmp_path, InTuneDataModule(schema, str(clicks), batch_size=256), max_epochs=2)
    stopped = fit(
        tmp_path,
        InTuneDataModule(schema, str(clicks), batch_size=256),
        InTuneCallback(),
        ModelCheckpoint(dirpath=tmp_path, filename="cut", every_n_train_steps=7),
        max_steps=7,
        max_epochs=2,
        enable_checkpointing=True,
    )
    resumed = Clicks()
    wide = InTuneDataModule(schema, str(clicks), batch_size=256, widths={"read": 3, "transform": 2, "prefetch": 5})
    callbacks = [InTuneCallback(), ModelCheckpoint(dirpath=tmp_path / "later", every_n_train_steps=7)]
    run = trainer(tmp_path, max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    run.fit(resumed, wide, ckpt_path=tmp_path / "cut.ckpt")
    assert stopped.rows + resumed.rows == whole.rows
    assert stopped.losses + resumed.losses == pytest.approx(whole.losses)


def test_each_turn_reaches_tensorboard_and_the_decision_file(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    callback = InTuneCallback(turn_interval_s=0.02)
    logger = TensorBoardLogger(tmp_path)
    data = InTuneDataModule(schema, str(clicks), batch_size=64)
    run = trainer(tmp_path, callbacks=[callback], logger=logger, max_epochs=2, log_every_n_steps=10)
    run.fit(Clicks(), data)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = set(events.Tags()["scalars"])
    stages = ("read", "transform", "prefetch")
    assert {f"intune/{tag}" for tag in ("samples_per_s", "data_wait_share", "reward", "roofline_share")} <= tags
    assert {f"intune/width/{stage}" for stage in stages} <= tags
    assert len(events.Scalars("intune/reward")) == len(callback.history)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert {"intune/summary/text_summary", "_hparams_/session_start_info"} <= set(
        events.Tags()["tensors"]
    ) | tags | set(events.summary_metadata)
    assert "intune/final/samples_per_s" in tags
    assert ("intune/stages" in events.Tags()["images"]) == (find_spec("matplotlib") is not None)
    lines = (Path(logger.log_dir) / "intune_decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["turn"] for line in lines] == [turn.turn for turn in callback.history]
    found = load_widths(Path(logger.log_dir) / "intune_widths.yaml")
    assert found == callback.widths
    InTuneCallback(warm_start=str(Path(logger.log_dir) / "intune_widths.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        InTuneCallback(warm_start=str(tmp_path / "none.yaml"))


def test_the_progress_bar_shows_samples_wait_and_widths_and_is_given_back(
    clicks: Path, schema: Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    class Bar(pl.callbacks.TQDMProgressBar):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            seen.update(self.get_metrics(trainer, pl_module))

    tuner, bar = InTuneCallback(turn_interval_s=0.01), Bar()
    data = InTuneDataModule(schema, str(clicks), batch_size=64)
    trainer(tmp_path, callbacks=[tuner, bar], enable_progress_bar=True).fit(Clicks(), data)
    last = tuner.history[-1]
    assert seen["samples/s"] == f"{last.samples_per_s:,.0f}"
    assert seen["data wait"] == f"{last.wait_share:.0%}"
    assert seen["widths"] == "/".join(map(str, last.asked.values()))
    assert "samples/s" in capsys.readouterr().out
    assert "get_metrics" not in vars(bar)
    assert tuner.report().splitlines()[0].startswith("| stage")
    assert data.report().splitlines()[0] == "train"
    assert InTuneDataModule(schema, str(clicks)).report() == "No loader has run yet."


def test_validation_loaders_start_and_stop_with_the_run(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    data = InTuneDataModule(schema, str(clicks), val=str(clicks / "part-1.parquet"), batch_size=500)
    model = fit(tmp_path, data, InTuneCallback(), kind=Validated, max_epochs=2, num_sanity_val_steps=2)
    assert len(model.rows) == 2 * NUM_ROWS / 500
    assert sorted(data.loaders) == ["train", "val"]


@pytest.mark.parametrize("filters", [[["row", "<", 700]], [[["row", "<", 300]], [["row", ">=", 5600]]]])
def test_filters_as_yaml_gives_them_choose_the_rows(filters: Any, clicks: Path, schema: Schema, tmp_path: Path) -> None:
    data = InTuneDataModule(schema, str(clicks), batch_size=150, filters=filters)
    model = fit(tmp_path, data, InTuneCallback())
    assert len([row for batch in model.rows for row in batch]) == 700


def test_dedup_stores_each_groups_repeats_once_and_changes_no_row(schema: Schema, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(range(64))
    table = pa.table({"row": pa.array(rows, pa.float32()), "item": [str(row // 8) for row in rows], "click": [0] * 64})
    pq.write_table(table, tmp_path / "sessions.parquet", row_group_size=16)
    plain = InTuneDataModule(schema, str(tmp_path / "sessions.parquet"), batch_size=32, shuffle=False)
    once = InTuneDataModule(schema, str(tmp_path / "sessions.parquet"), batch_size=32, shuffle=False, dedup=[["item"]])
    with plain.train_dataloader() as first, once.train_dataloader() as second:
        for left, right in zip(first, second, strict=True):
            assert len(right.sparse.values()) == 4  # of 32 rows, 8 to a session
            assert right.sparse.values()[right.sparse.inverse("item")].tolist() == left.sparse.values().tolist()
            assert right.dense.tolist() == left.dense.tolist()
    with pytest.raises(ConfigError, match="itm"):
        InTuneDataModule(schema, "somewhere", dedup=[["itm"]])


def test_a_plain_dataloader_is_told_how_to_become_tunable(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="InTuneCallback: the training data comes from no ElasticLoader"):
        trainer(tmp_path, callbacks=[InTuneCallback()], max_steps=2).fit(Idle(), DataLoader(range(8)))


def test_a_loader_of_ones_own_graph_is_tuned_too(tmp_path: Path) -> None:
    graph = ElasticMapper(IterableSource(range(300)), lambda n: torch.full((4,), n), 1, name="full")
    callback = InTuneCallback(turn_interval_s=0.01)
    with ElasticLoader(graph) as loader:
        trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(Idle(), loader)
    assert callback.history
    assert set(callback.widths) == {"full"}


def test_a_failing_transform_ends_the_run_with_its_stage_and_leaves_nothing(
    clicks: Path, schema: Schema, tmp_path: Path
) -> None:
    labels = Schema(dense=schema.dense, sparse=schema.sparse, labels=["click"], weight="row")  # row 0 weighs 0: fine
    data = InTuneDataModule(labels, str(clicks), batch_size=500, shuffle=False)

    class Broken(Clicks):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise ArithmeticError("the model's own")

    with pytest.raises(ArithmeticError, match="the model's own"):
        trainer(tmp_path, callbacks=[InTuneCallback()]).fit(Broken(), data)
    negative = Schema(dense=[DenseFeature(name="row")], labels=["click"], weight="minus")
    import pyarrow.parquet as pq

    table = pq.read_table(clicks / "part-0.parquet")
    pq.write_table(table.append_column("minus", [-table["click"].to_numpy().astype("f4")]), tmp_path / "bad.parquet")
    with pytest.raises(StageError, match=r"stage 'transform': item 0 failed with ValueError: .*weight column 'minus'"):
        trainer(tmp_path).fit(Clicks(), InTuneDataModule(negative, str(tmp_path / "bad.parquet")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 makes no batch"),
        ({"mix_row_groups": 0}, "mix_row_groups=0 holds no rows"),
        ({"widths": {"read": -1}}, r"gives 'read' -1 workers, outside \[1, max_workers=64\]"),
        ({"widths": {"shuffle": 2}}, "names the stage 'shuffle'; there are read, transform, prefetch"),
        ({"max_workers": 0}, "max_workers=0 leaves no worker"),
        ({"train": None}, "it has no data"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_construction(
    settings: dict[str, Any], message: str, schema: Schema
) -> None:
    with pytest.raises(ConfigError, match=message):
        InTuneDataModule(schema, **{"train": "somewhere", **settings})


def test_data_that_does_not_fit_is_refused_before_any_worker_starts(
    clicks: Path, schema: Schema, tmp_path: Path
) -> None:
    missing = Schema(dense=[DenseFeature(name="rows")], labels=["click"])
    with pytest.raises(ConfigError, match=r"no column 'rows' \(did you mean 'row'"):
        InTuneDataModule(missing, str(clicks)).setup("fit")
    mistyped = Schema(dense=[DenseFeature(name="item")], labels=["click"])
    with pytest.raises(ConfigError, match="item"):
        InTuneDataModule(mistyped, str(clicks)).setup("fit")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="empty"):
        InTuneDataModule(schema, str(empty)).setup("fit")
    (empty / "notes.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match=r"notes\.parquet"):
        InTuneDataModule(schema, str(empty)).setup("fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agent": "oracle"}, "'oracle' is none of"),
        ({"objective": "speed"}, "objective='speed' is unknown"),
        ({"turn_interval_s": 0.0}, "turn_interval_s=0.0 is no time"),
        ({"cpu_budget": 0.0}, "cpus=0.0 leaves nothing to run on"),
        ({"memory_budget": -1}, "memory_limit_bytes=-1 is no limit"),
        ({"weights": "missing.safetensors"}, "missing.safetensors"),
    ],
)
def test_a_callback_refuses_settings_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InTuneCallback(**settings)


def test_epochs_shorter_than_a_turn_are_tuned_though_each_ends_with_a_validation(
    clicks: Path, schema: Schema, tmp_path: Path
) -> None:
    data = InTuneDataModule(schema, str(clicks), val=str(clicks / "part-1.parquet"), batch_size=2_000)
    callback = InTuneCallback(turn_interval_s=0.1)
    fit(tmp_path, data, callback, kind=Validated, max_epochs=40)
    assert callback.history
    assert all(0 <= turn.wait_share <= 1 for turn in callback.history)


def test_a_run_shorter_than_a_turn_still_tells_what_limited_it(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    callback = InTuneCallback(turn_interval_s=1_000.0)
    fit(tmp_path, InTuneDataModule(schema, str(clicks), batch_size=500), callback)
    assert not callback.history
    first_cells = [line.split("|")[1].strip() for line in callback.report().splitlines() if line.startswith("|")]
    assert first_cells[2:] == ["read", "transform", "prefetch"]
    assert "samples/s" in callback.report()


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt])
def test_a_failure_in_validation_stops_the_workers_of_both_loaders(
    error: type[BaseException], clicks: Path, schema: Schema, tmp_path: Path
) -> None:
    class Failing(Validated):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise error("stop here")

    data = InTuneDataModule(schema, str(clicks), val=str(clicks), batch_size=100)
    with contextlib.suppress(ArithmeticError, SystemExit, KeyboardInterrupt):
        trainer(tmp_path, val_check_interval=2).fit(Failing(), data)
    assert sorted(data.loaders) == ["train", "val"]
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("read", "transform", "prefetch"))]
