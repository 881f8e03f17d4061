"""The training contest trains alike, and its clock counts what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.train_parts import data

pytest.importorskip("torchrec")

from benchmarks.peers_parts.measured import measured
from benchmarks.train import ENGINES, _best_setting
from benchmarks.train_parts.model import MODELS, network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts of 4 batches of 64 rows, and the validation's."""
    made = str(tmp_path_factory.mktemp("train"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ROWS_PER_BATCH", 64)
        patch.setattr(data.tempfile, "gettempdir", lambda: made)
        return data.folder_of(4)


@pytest.mark.parametrize("index", range(4))
def test_both_layouts_give_the_models_the_same_rows(folder: Path, index: int) -> None:
    rows = data.make_batch(folder / "train", "rows")(index)
    sessions = data.make_batch(folder / "train", "sessions")(index)
    assert torch.equal(rows.dense, sessions.dense)
    assert torch.equal(rows.labels, sessions.labels)
    for key in (*data.USER, *data.ITEM):
        for one, other in zip(rows.sparse[key], sessions.sparse[key], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_the_same_of_rows_and_of_sessions(folder: Path, name: str) -> None:
    net = network(name)
    rows = data.make_batch(folder / "train", "rows")(0)
    sessions = data.make_batch(folder / "train", "sessions")(0)
    torch.testing.assert_close(net(rows.dense, rows.sparse), net(sessions.dense, sessions.sparse), atol=1e-5, rtol=1e-5)


def test_every_engine_sees_each_batch_once_a_pass() -> None:
    order = data.order_of(5, 12)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert len(order) == 12
    assert data.order_of(5, 12) == order


@pytest.mark.slow
def test_ours_and_the_dataloader_learn_the_same(folder: Path) -> None:
    job = {"folder": str(folder), "model": "sequence", "threads": 1, "workers": 1}
    job |= {"auc_steps": 8, "warm_up_s": 0.1, "seconds": 0.5}
    aucs = []
    for engine in ENGINES:
        found, error = measured("benchmarks.train_parts.child", job | {"engine": engine}, 100.0)
        assert error == ""
        assert found is not None
        assert found["samples_per_s"] > 0
        assert 0 <= found["data_wait_share"] < 1
        aucs.append(found["auc"])
    assert aucs == pytest.approx([aucs[0]] * len(ENGINES), abs=1e-4)


def _chosen(engine: str, rates: dict[tuple[int, int], float]) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """What was tried, as (threads, workers), and what was taken."""
    tried: list[tuple[int, int]] = []

    def once(setting: dict[str, int], **_: float) -> dict[str, float] | None:
        tried.append((setting["threads"], setting["workers"]))
        rate = rates.get(tried[-1])
        return None if rate is None else {"samples_per_s": rate}

    return tried, _best_setting(once, engine, quick=False)


def test_a_dataloader_gets_a_second_worker_where_that_is_better() -> None:
    tried, best = _chosen("dataloader_sessions", {(1, 1): 5.0, (2, 1): 3.0, (1, 2): 6.0})
    assert tried == [(1, 1), (2, 1), (1, 2)]
    assert best == {"threads": 1, "workers": 2}


def test_a_setting_that_fails_is_not_taken() -> None:
    tried, best = _chosen("ours_fixed", {(2, 0): 4.0})
    assert tried == [(1, 0), (2, 0)]
    assert best == {"threads": 2, "workers": 0}
