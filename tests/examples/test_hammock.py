"""The quantised network and its rival on a slice of the real data; the figures they are judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from examples.hammock.compare import show, verdict
from examples.hammock.model import Hammock
from examples.hammock.quality import Quality, auc, quality
from examples.hammock.schema import NUMBERS, quantised
from examples.open_bandit import data
from lightning_intune.flow.transform import ToBatch

pytest.importorskip("sklearn")

SLICE = Path(__file__).with_name("open_bandit_slice.zip")

pytestmark = [pytest.mark.filterwarnings("ignore:.*LeafSpec.*"), pytest.mark.filterwarnings("ignore:.*many workers.*")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hammock") / "parquet"
    data.write_dataset(SLICE, path, row_group_rows=100)
    return path


def test_the_first_layer_is_a_linear_layer_over_one_hot_inputs(folder: Path) -> None:
    files = sorted((folder / "train").glob("*.parquet"))
    schema = quantised(files, num_bins=8)
    assert [feature.transform for feature in schema.sparse[:3]] == ["bucket"] * 3
    batch = ToBatch(schema)(pq.read_table(files[0], columns=list(schema.columns)).slice(0, 7))
    model = Hammock(schema, num_hidden=5)
    torch.nn.init.normal_(model.last.weight)
    keys = batch.sparse.values().view(len(schema.sparse), 7)
    ones = [torch.nn.functional.one_hot(keys[i], of.num_embeddings) for i, of in enumerate(schema.sparse)]
    one_hot = torch.cat(ones, dim=1).float()
    hidden = torch.tanh(one_hot @ model.first.weight + model.bias)
    torch.testing.assert_close(model(batch), model.last(hidden)[:, 0])


def test_bins_hold_about_equally_many_rows(folder: Path) -> None:
    files = sorted((folder / "train").glob("*.parquet"))
    schema = quantised(files, num_bins=4)
    feature = schema.sparse[NUMBERS.index("hour")]
    hours = np.concatenate([pq.read_table(file)["hour"].to_numpy() for file in files])
    counts = np.bincount(np.searchsorted(feature.boundaries, hours, side="right"))
    most = np.bincount(hours).max()  # an hour is never cut
    assert len(counts) == 4
    assert np.abs(counts - len(hours) / 4).max() <= most


def test_the_comparison_runs_on_a_slice_and_shows_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hammocks = [{"num_hidden": 4, "ridge": 1e-3, "epochs": 1}]
    boostings = [{"num_trees": trees, "num_leaves": 3, "learning_rate": 0.1} for trees in (2, 4)]
    show(folder, hammocks=hammocks, boostings=boostings)
    shown = capsys.readouterr().out
    for words in ("Hammock", "gradient boosting", "base rate", "num_hidden=4", "95 % interval"):
        assert words in shown


def test_auc_counts_pairs_and_ties_half() -> None:
    clicks = np.array([0.0, 1.0, 0.0, 1.0])
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]) / 5, clicks, np.ones(4)) == 0.75
    assert auc(np.full(4, 0.5), clicks, np.ones(4)) == 0.5
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]) / 5, clicks, np.array([1, 0, 1, 1])) == 1.0
    assert np.isnan(auc(np.full(4, 0.5), np.zeros(4), np.ones(4)))


def test_a_better_model_gains_and_its_interval_says_so() -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.05, 0.95, 2000)
    clicks = (rng.random(2000) < chance).astype(float)
    judged = quality(chance, np.full(2000, 0.5), clicks, num_resamples=100)
    low, gain, high = judged.gain
    assert 0 < low < gain < high
    assert judged.auc[0] < judged.auc[1] < judged.auc[2]
    assert verdict(judged).startswith("Hammock is better here")
    worse = Quality(log_loss=1.0, gain=(-3e-6, -2e-6, -1e-6), auc=judged.auc)
    assert verdict(worse).startswith("Gradient boosting is better here")
    unsure = Quality(log_loss=1.0, gain=(-1e-6, 0.0, 1e-6), auc=judged.auc)
    assert verdict(unsure).startswith("So few clicks cannot tell")
