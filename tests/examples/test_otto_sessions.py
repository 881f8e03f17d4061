"""OTTO's format becomes Parquet and trains a model: made-up sessions always, the data's own sample where it lies."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lightning_intune.errors import ConfigError

pytest.importorskip("torchrec", exc_type=ImportError)
pytest.importorskip("duckdb")

from examples.otto_sessions import train as script
from examples.otto_sessions.convert import convert

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "otto" / "train.jsonl"
DAY_MS = 86_400_000
FIRST_MS = 1_659_304_800_000  # 31 July 2022, 22:00 UTC

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


def write_sessions(path: Path, *, num_days: int) -> Path:
    """One session a day of a click, a cart and an order on items 1, 2, 3 of that day."""
    with path.open("w") as file:
        for day in range(num_days):
            events = [
                {"aid": 10 * day + place, "ts": FIRST_MS + day * DAY_MS + place, "type": kind}
                for place, kind in enumerate(("clicks", "carts", "orders"), start=1)
            ]
            file.write(json.dumps({"session": day, "events": events}) + "\n")
    return path


def test_each_event_knows_the_items_before_it_and_the_last_week_validates(tmp_path: Path) -> None:
    folder = convert(write_sessions(tmp_path / "o.jsonl", num_days=9), tmp_path / "out")
    train, val = pq.read_table(folder / "train"), pq.read_table(folder / "val")
    assert train.select(["session", "aid", "history", "wants"]).to_pylist() == [
        {"session": 0, "aid": 1, "history": [], "wants": 0},
        {"session": 0, "aid": 2, "history": [1], "wants": 1},
        {"session": 0, "aid": 3, "history": [1, 2], "wants": 1},
        {"session": 1, "aid": 11, "history": [], "wants": 0},
        {"session": 1, "aid": 12, "history": [11], "wants": 1},
        {"session": 1, "aid": 13, "history": [11, 12], "wants": 1},
    ]
    assert train["day_share"].to_pylist() == pytest.approx([22 / 24] * 6, abs=1e-6)
    assert set(val["session"].to_pylist()) == set(range(2, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "out"]


def test_a_week_alone_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_sessions(tmp_path / "o.jsonl", num_days=7)
    with pytest.raises(ConfigError, match="7 are to validate"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_a_model_trains_on_made_up_sessions(tmp_path: Path) -> None:
    run = script.train(write_sessions(tmp_path / "o.jsonl", num_days=12), tmp_path / "out", max_epochs=2, batch_size=8)
    assert run.num_steps == 2 * 2  # fifteen events in batches of eight
    assert set(run.tuner.widths) >= {"read", "transform", "prefetch"}
    # Two of three events are a cart or an order, on every day: the base rate's log loss, by hand.
    assert run.val_base == pytest.approx(0.6365, abs=1e-4)


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"the OTTO sample is not at {SAMPLE}")
def test_the_sample_trains(tmp_path: Path) -> None:
    run = script.train(SAMPLE, tmp_path / "out", max_epochs=1, batch_size=128)
    rows = pq.read_table(tmp_path / "out")
    assert rows.num_rows == 862
    assert sum(rows["wants"].to_pylist()) == 52 + 10
    assert run.val_loss > 0


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "nowhere.jsonl"])
    assert script.main() == 1
    assert "there is no file 'nowhere.jsonl'" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train"])
    assert script.main() == 0  # `make examples` goes on where the sample is not
    assert "nothing was done" in capsys.readouterr().out
