"""Files of the session layout in `InTuneDataModule`: recognised, and the same impressions as those of the rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lightning_intune import InTuneCallback, InTuneDataModule, console
from lightning_intune.balance import Balance
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch
from lightning_intune.dedup.etl.session_layout import file_metadata, fold_sessions
from lightning_intune.dedup.layout import SessionLayout
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource
from lightning_intune.pipeline import Pipeline, Place
from tests.lightning.conftest import Clicks, trainer

ROOT = Path(__file__).parents[2]
LEVEL = ("session", "user", "history")
SCHEMA = Schema(
    dense=[DenseFeature(name="price")],
    sparse=[SparseFeature(name=name, num_embeddings=97) for name in ("user", "history", "item", "words")],
    labels=["click"],
)


def log(seed: int, num_sessions: int) -> tuple[pa.Table, Any]:
    """Rows, sessions side by side, and where each begins."""
    rng = np.random.default_rng(seed)
    counts = np.minimum(1 + rng.geometric(0.2, num_sessions), 40)
    session = np.repeat(np.arange(num_sessions), counts)
    num_rows = len(session)
    history = [rng.integers(0, 90, rng.integers(0, 5)).tolist() for _ in range(num_sessions)]
    rows = pa.table(
        {
            "session": session,
            "user": rng.integers(0, 50, num_sessions)[session],
            "history": pa.array([history[at] for at in session], pa.list_(pa.int64())),
            "time": np.arange(num_rows),
            "item": rng.integers(0, 80, num_rows),
            "words": pa.array([[f"w{w}" for w in rng.integers(0, 9, rng.integers(0, 3))] for _ in range(num_rows)]),
            "price": rng.random(num_rows),
            "click": np.arange(num_rows, dtype=np.float32),  # tells each row
        }
    )
    return rows, np.concatenate([[0], np.cumsum(counts)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `rows` and `sessions` of two files each with the same impressions, 5 row groups a file."""
    folder = tmp_path_factory.mktemp("layout")
    about = file_metadata("sessions", session="session", time="time", session_level=LEVEL, partition="day")
    for name in ("rows", "sessions"):
        (folder / name).mkdir()
    for part in range(2):
        rows, bounds = log(part, 100)
        rows = rows.set_column(7, "click", pa.array(rows["click"].to_numpy() + 10_000.0 * part))
        pq.write_table(rows, folder / "rows" / f"{part}.parquet", row_group_size=120)
        sessions = fold_sessions(rows, bounds, LEVEL).replace_schema_metadata(about)
        pq.write_table(sessions, folder / "sessions" / f"{part}.parquet", row_group_size=20)
    return folder


def module(path: Path, **settings: Any) -> InTuneDataModule:
    return InTuneDataModule(SCHEMA, **{"train": str(path), "batch_size": 64, "shuffle": False, **settings})


def loader(data: InTuneDataModule) -> Any:
    data.setup("fit")
    return data.train_dataloader()


def rows_of(batch: Batch) -> list[tuple[Any, ...]]:
    """Of each row: its label, price, and the values of every feature."""
    features = []
    for name in ("user", "history", "item", "words"):
        values, lengths = batch.sparse[name]
        features.append([part.tolist() for part in torch.split(values, lengths.tolist())])
    prices, labels = batch.dense[:, 0].tolist(), batch.labels[:, 0].tolist()
    return list(zip(labels, prices, *features, strict=True))


def test_in_order_its_batches_are_those_of_the_rows(files: Path) -> None:
    of_rows, of_sessions = (loader(module(files / name)) for name in ("rows", "sessions"))
    found, wanted = list(of_sessions), list(of_rows)
    assert [rows_of(batch) for batch in found] == [rows_of(batch) for batch in wanted]
    assert len(of_sessions) == len(of_rows) == len(found)
    # What is the session's is stored once: users fewer than rows.
    assert found[0].sparse.dedup_factor > 1.5
    assert len(loader(module(files / "sessions", drop_last=True))) == len(found) - 1


def test_shuffled_every_impression_comes_once_an_epoch_in_another_order_and_sessions_stay_together(files: Path) -> None:
    wanted = sorted(row for batch in loader(module(files / "rows")) for row in rows_of(batch))
    shuffled = loader(module(files / "sessions", shuffle=True, seed=3))
    epochs = []
    for epoch in range(2):
        shuffled.set_epoch(epoch)
        epochs.append([row for batch in shuffled for row in rows_of(batch)])
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]
    follows = [later[0] - before[0] == 1 for before, later in zip(epochs[0], epochs[0][1:], strict=False)]
    assert 0.6 < np.mean(follows) < 0.95  # rows of a session follow one another, sessions do not


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("cut", [1, 7, 15])
def test_a_resume_goes_on_with_the_next_batch_at_other_widths(files: Path, *, shuffle: bool, cut: int) -> None:
    whole = [rows_of(batch) for batch in loader(module(files / "sessions", shuffle=shuffle))]
    first = loader(module(files / "sessions", shuffle=shuffle))
    batches = iter(first)
    list(islice(batches, cut))
    state = first.state_dict()
    first.shutdown()
    rest = loader(module(files / "sessions", shuffle=shuffle, widths={"read": 3, "transform": 2}))
    rest.load_state_dict(state)
    assert [rows_of(batch) for batch in rest] == whole[cut:]


def test_features_of_the_impressions_may_still_be_sought(files: Path) -> None:
    data = module(files / "sessions", dedup=[["user", "history"], ["words"]])
    wanted = [rows_of(batch) for batch in loader(module(files / "rows"))]
    assert [rows_of(batch) for batch in loader(data)] == wanted


def test_a_lightning_run_trains_and_validates_on_it(files: Path, tmp_path: Path) -> None:
    class Model(Clicks):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.last = torch.nn.EmbeddingBag(97, 4, mode="sum"), torch.nn.Linear(5, 1)

        def loss(self, batch: Batch) -> torch.Tensor:
            values, lengths = batch.sparse["history"]
            bags = self.items(values.long(), torch.cumsum(lengths.long(), 0) - lengths)
            return self.last(torch.cat([batch.dense, bags], dim=1)).square().mean()

        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch), batch_size=len(batch.labels))

    data = module(files / "sessions", shuffle=True, val=str(files / "sessions"))
    run = trainer(tmp_path, callbacks=[InTuneCallback()], val_check_interval=0.5)
    run.fit(Model(), data)
    assert run.global_step == len(loader(module(files / "sessions")))
    assert "val_loss" in run.callback_metrics


def test_filters_make_its_length_unknown_and_apply_to_sessions(files: Path) -> None:
    filtered = loader(module(files / "sessions", filters=[["session", "<", 10]]))
    with pytest.raises(TypeError):
        len(filtered)
    wanted = [
        row[0] for batch in loader(module(files / "rows", filters=[["session", "<", 10]])) for row in rows_of(batch)
    ]
    assert [row[0] for batch in filtered for row in rows_of(batch)] == wanted


def test_entries_are_counted_by_footers(files: Path, tmp_path: Path) -> None:
    def counted(folder: Path, column: str) -> int | None:
        return ParquetSource(folder, entries_of=lambda _: column).num_entries

    num_rows = pq.read_table(files / "rows").num_rows
    assert counted(files / "sessions", "click") == num_rows
    assert counted(files / "sessions", "history") is not None
    assert counted(files / "sessions", "user") is None  # no list
    assert counted(files / "sessions", "absent") is None
    assert ParquetSource(files / "sessions").num_entries is None
    # A dot in a name is no path into it, and another column may begin alike.
    dotted = pa.table({"l": [[1, 2]], "l.click": [[1.0, 2.0]], "l.x": [3]})
    pq.write_table(dotted, tmp_path / "dotted.parquet")
    assert counted(tmp_path, "l.click") == counted(tmp_path, "l") == 2


def test_too_few_impressions_are_told_before_the_run(files: Path) -> None:
    with pytest.raises(ConfigError, match="impressions over 1 ranks do not fill one batch of 100000"):
        loader(module(files / "sessions", batch_size=100_000, drop_last=True))
    pipeline = Pipeline(schema=SCHEMA, batch_size=900, drop_last=True)
    with pytest.raises(ConfigError, match="impressions over 2 ranks do not fill one batch of 900 each"):
        pipeline.loader(str(files / "sessions"), Place(rank=0, world_size=2, is_train=True))


@pytest.mark.parametrize("layout", ["rows", "sessions"])
def test_a_resume_at_another_batch_size_is_refused_within_an_epoch_and_no_fault_at_its_end(
    files: Path, layout: str
) -> None:
    first = loader(module(files / layout, batch_size=100))
    begun, batches = first.state_dict(), iter(first)
    list(islice(batches, 5))
    state = first.state_dict()
    first.shutdown()
    other = loader(module(files / layout, batch_size=16))
    with pytest.raises(ConfigError, match=r"5 batches of 100 into an epoch.*Resume with batch_size=100"):
        other.load_state_dict(state)
    other.load_state_dict(begun)
    assert len(list(other)) == len(other)


def test_columns_of_folder_names_are_the_sessions(files: Path, tmp_path: Path) -> None:
    for part, region in enumerate(("eu", "us")):
        (tmp_path / f"region={region}").mkdir()
        shutil.copy(files / "sessions" / f"{part}.parquet", tmp_path / f"region={region}")
    features = [*SCHEMA.sparse, SparseFeature(name="region", num_embeddings=1000)]
    data = InTuneDataModule(
        Schema(sparse=features, labels=["click"]), train=str(tmp_path), batch_size=64, shuffle=False
    )
    regions = {values for batch in loader(data) for values in batch.sparse["region"][0].tolist()}
    assert len(regions) == 2


def test_where_every_label_is_the_sessions_a_session_is_an_example(files: Path) -> None:
    schema = Schema(sparse=[SparseFeature(name=name, num_embeddings=97) for name in ("user", "item")], labels=["user"])
    batches = list(loader(InTuneDataModule(schema, train=str(files / "sessions"), batch_size=64, shuffle=False)))
    assert sum(len(batch.labels) for batch in batches) == 200
    assert max(batches[0].sparse["item"][1].tolist()) > 1


def test_balancing_impressions_of_sessions_says_what_to_set(files: Path) -> None:
    with pytest.raises(ConfigError, match="Set unit to session"):
        loader(module(files / "sessions", balance=Balance(mode="local")))


def test_a_schema_without_labels_has_no_length(files: Path) -> None:
    schema = Schema(sparse=SCHEMA.sparse, labels=[])
    assert SessionLayout(schema, LEVEL).counted is None
    data = InTuneDataModule(schema, train=str(files / "sessions"), batch_size=64)
    with pytest.raises(TypeError):
        len(loader(data))


def test_the_schema_command_sees_impressions(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for name in ("rows", "sessions"):
        assert console.main(["schema", str(files / name), "--label", "click"]) == 0
        shown.append(capsys.readouterr().out.split("\n", 1)[1])
    assert shown[0] == shown[1]


def test_two_ranks_share_the_sessions_and_take_as_many_steps(files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.lightning.session_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), str(files / "sessions")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0]
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first["num_batches"] == second["num_batches"]
    wanted = [row[0] for batch in loader(module(files / "rows")) for row in rows_of(batch)]
    assert sorted(first["labels"] + second["labels"]) == sorted(wanted)
    assert min(len(first["labels"]), len(second["labels"])) > 0.4 * len(wanted)
