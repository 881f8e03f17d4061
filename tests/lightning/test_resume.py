"""A run killed at any step goes on, from its last checkpoint, with exactly what an unbroken run would train on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, Shuffle
from tests.lightning.conftest import Validated, trainer

NUM_ROWS = 1_501  # over two ranks one more row on one of them
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for part, rows in enumerate(np.split(np.arange(NUM_ROWS), [NUM_ROWS // 2])):
        table = pa.table(
            {
                "row": rows.astype(np.float32),
                "item": rng.integers(0, 50, len(rows)).astype(str),
                "click": (rng.random(len(rows)) < 0.3).astype(np.int8),
            }
        )
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=110)
    return folder


def setup(data: Path, cuts: list[tuple[str, int]], **changes: Any) -> dict[str, Any]:
    """What `resume_runs` wants; `cuts` are (where, at the how many-th time)."""
    defaults: dict[str, Any] = {
        "ranks": 1,
        "data": str(data),
        "callback": True,
        "settings": {"batch_size": 64, "mix_row_groups": 3},
        "trainer": {"max_epochs": 2},
        "saves": {"every_n_train_steps": 3},
        "cuts": cuts,
    }
    return defaults | changes


def without_len(**settings: Any) -> dict[str, Any]:
    """A filter that every row passes: how many batches there are is not known beforehand."""
    return {"batch_size": 64, "mix_row_groups": 3, "filters": [["row", ">=", 0]], **settings}


def run(folder: Path, setups: list[dict[str, Any]]) -> dict[str, Any]:
    job = json.dumps({"folder": str(folder), "setups": setups})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.lightning.resume_runs", job],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_killed_run_resumes_behind_its_last_trained_batch_at_other_widths(small_clicks: Path, tmp_path: Path) -> None:
    """Of 24 steps an epoch: killed in a step, in a save, in a validation, behind an epoch that ended early."""
    result = run(
        tmp_path,
        [
            setup(small_clicks, [("step", 8), ("saved", 4), ("step", 30)]),
            setup(
                small_clicks,
                [("step", 12), ("step", 22)],
                settings=without_len(),
                trainer={"max_epochs": 3, "limit_train_batches": 10},
                saves={"every_n_train_steps": 5},
            ),
            setup(
                small_clicks,
                [("step", 13), ("validation", 26), ("validation", 60)],
                callback=False,
                settings=without_len(),
                trainer={"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 6},
                saves={"every_n_train_steps": 2},
            ),
        ],
    )
    assert result["differences"] == []
    # Validations take 12 batches: the 26th is in the one after step 18, the 60th in the one after step 30.
    left = [48 - 6, 48 - 9, 48 - 27, 30 - 10, 30 - 20, 48 - 12, 48 - 16, 48 - 28]
    assert result["compared"] == sum(left)
    assert result["trained"][0] == [list(range(NUM_ROWS))] * 2


def test_two_ranks_resume_each_at_its_own_place_and_lose_no_row(small_clicks: Path, tmp_path: Path) -> None:
    cuts = [("step", 8), ("saved", 6)]
    result = run(
        tmp_path,
        [
            setup(small_clicks, cuts, ranks=2),
            setup(small_clicks, cuts[:1], ranks=2, settings=without_len(batch_size=75)),  # 751 rows: one for a step
        ],
    )
    assert result["differences"] == []
    assert result["trained"] == [[list(range(NUM_ROWS))] * 2] * 2


class Rows(Validated):
    """Remembers what it is trained on, whatever batches look like."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if not isinstance(batch, list):
            return super().training_step(batch, batch_idx)
        self.rows.append(batch[0].tolist())
        return self.bias.weight.sum()


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You defined a `validation_step`")  # on purpose
@pytest.mark.parametrize("kind", ["datamodule", "datamodule without len", "no callback", "seeded graph"])
@pytest.mark.parametrize("saves", [{"every_n_epochs": 1}, {"every_n_epochs": 1, "save_on_train_epoch_end": True}])
def test_a_run_resumed_from_an_epochs_end_begins_the_next_epoch(
    kind: str, saves: dict[str, Any], small_clicks: Path, tmp_path: Path
) -> None:
    def fit(name: str, epochs: int, checkpoint: Path | None = None) -> Rows:
        torch.manual_seed(0)
        schema = Schema(
            dense=[DenseFeature(name="row")], sparse=[SparseFeature(name="item", num_embeddings=64)], labels=["click"]
        )
        settings = without_len() if kind == "datamodule without len" else {"batch_size": 64}
        model = Rows()
        data: Any = InTuneDataModule(schema, str(small_clicks), val=str(small_clicks / "part-1.parquet"), **settings)
        if kind == "seeded graph":
            shuffled = Shuffle(IterableSource(range(60)), window=60, seed=3)
            data = ElasticLoader(ElasticMapper(shuffled, lambda n: [torch.tensor([n])], 1, name="wrap"))
        callbacks: list[Any] = [ModelCheckpoint(dirpath=tmp_path / name, save_top_k=-1, filename="{epoch}", **saves)]
        callbacks += [] if kind == "no callback" else [InTuneCallback(turn_interval_s=0.02)]
        run = trainer(tmp_path, callbacks=callbacks, max_epochs=epochs, enable_checkpointing=True)
        run.fit(model, data, ckpt_path=checkpoint, weights_only=False)
        return model

    whole = fit("whole", 3)
    for epochs in (1, 2):
        resumed = fit(f"resumed{epochs}", 3, tmp_path / "whole" / f"epoch={epochs - 1}.ckpt")
        assert resumed.rows == whole.rows[epochs * len(whole.rows) // 3 :]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_random_cuts(ranks: int, small_clicks: Path, tmp_path: Path) -> None:
    rng = random.Random(ranks)
    steps = 48 // ranks

    def cuts() -> list[tuple[str, int]]:
        places = {"step": steps, "saved": steps // 4, "validation": 40}
        return [(place, rng.randint(1, places[place])) for place in rng.choices(list(places), k=10)]

    often = {"max_epochs": 2, "val_check_interval": 6}
    saves = {"every_n_train_steps": 2}
    setups = [
        setup(small_clicks, cuts(), ranks=ranks, trainer=often, saves=saves),
        setup(
            small_clicks,
            cuts(),
            ranks=ranks,
            settings=without_len(),
            trainer=often | {"accumulate_grad_batches": 2},
            saves=saves,
        ),
    ]
    assert run(tmp_path, setups)["differences"] == []


class Ahead:
    """A trainer by hand: `ahead` batches taken before the one it trains on."""

    def __init__(self, loader: ElasticLoader[int], ahead: int) -> None:
        self.fetched, self.trained = 0, 0
        self._items, self._held, self._ahead = iter(loader), deque[int](), ahead

    def num_fetched(self) -> int:
        return self.fetched

    def num_trained(self) -> int:
        return self.trained

    def next_epoch(self) -> int | None:
        return None

    def step(self) -> int:
        for item in islice(self._items, 1 + self._ahead - len(self._held)):
            self.fetched += 1
            self._held.append(item)
        self.trained += 1
        return self._held.popleft()


@given(ahead=st.integers(0, 4), steps=st.integers(0, 12), more=st.integers(0, 4))
def test_a_state_is_that_of_the_last_trained_batch_however_far_ahead_the_trainer_takes(
    ahead: int, steps: int, more: int
) -> None:
    def loader() -> ElasticLoader[int]:
        return ElasticLoader(ElasticMapper(IterableSource(range(12)), int, num_workers=1))

    with loader() as first, loader() as second:
        trainer = Ahead(first, ahead)
        first.follow(trainer)
        trained = [trainer.step() for _ in range(steps)]
        state = first.state_dict()
        [trainer.step() for _ in range(min(more, 12 - steps))]  # goes on, and changes no state taken
        second.load_state_dict(state)
        assert trained == list(range(steps))
        if steps < 12:
            assert list(second) == list(range(steps, 12))
