"""Made-up sessions: calibrated, repeatable, learnable, and written in flat memory in any order."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lightning_intune.dedup.etl import synth
from lightning_intune.dedup.etl.session_layout import unfold_sessions
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, default_features, table, write_synth
from lightning_intune.errors import ConfigError

PLAIN = [SynthFeature(name="user", change=0.0), SynthFeature(name="item", change=1.0)]


def multiset(rows: pa.Table) -> Counter[str]:
    return Counter(map(repr, rows.to_pylist()))


def test_events_per_session_have_ottos_quantiles() -> None:
    lengths = SynthSpec().session_lengths(200_000, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(16.80, rel=0.03)
    assert lengths.std() == pytest.approx(33.58, rel=0.03)
    assert np.percentile(lengths, [50, 75, 90, 95]) == pytest.approx([6, 15, 39, 68], abs=1)
    assert lengths.min() == 2
    assert 490 <= lengths.max() <= 500


@pytest.mark.parametrize("mean", [1.0, 2.0, 6.0, 17.0], ids=str)
def test_a_chosen_mean_of_events_is_met(mean: float) -> None:
    lengths = SynthSpec(events_per_session=mean).session_lengths(200_000, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(mean, rel=0.03)
    assert lengths.min() >= 1


def test_equal_specs_make_equal_rows_and_another_seed_others() -> None:
    spec = SynthSpec(num_rows=5_000)
    assert table(spec).equals(table(spec))
    assert not table(spec).equals(table(SynthSpec(num_rows=5_000, seed=1)))


def test_a_longer_run_begins_with_the_shorter_ones_features() -> None:
    short, long = (table(SynthSpec(num_rows=n)).drop_columns("ts") for n in (3_000, 9_000))
    assert long[:3_000].equals(short)


def test_a_feature_changes_as_often_as_asked() -> None:
    features = [
        SynthFeature(name="still", change=0.0, num_ids=10**9),
        SynthFeature(name="some", change=0.2, num_ids=10**9),
        SynthFeature(name="all", change=1.0, num_ids=10**9),
    ]
    rows = table(SynthSpec(num_rows=40_000, features=features))
    session = rows["session"].to_numpy()
    inside = session[1:] == session[:-1]
    changes = [(rows[f.name].to_numpy()[1:] != rows[f.name].to_numpy()[:-1])[inside].mean() for f in features]
    assert changes == pytest.approx([0.0, 0.2, 1.0], abs=0.02)


def test_a_shifted_list_drops_its_oldest_ids_and_gains_as_many() -> None:
    history = SynthFeature(name="history", change=0.5, mean_length=10, shift=2, num_ids=10**9)
    rows = table(SynthSpec(num_rows=2_000, features=[history])).to_pylist()
    shifted = 0
    for earlier, later in itertools.pairwise(rows):
        if earlier["session"] == later["session"] and earlier["history"] != later["history"]:
            assert later["history"][:-2] == earlier["history"][2:]
            shifted += 1
    assert shifted > 500


def test_time_does_not_go_back_within_a_session() -> None:
    rows = table(SynthSpec(num_rows=20_000))
    session, ts = rows["session"].to_numpy(), rows["ts"].cast(pa.int64()).to_numpy()
    assert (np.diff(ts)[np.diff(session) == 0] >= 0).all()
    assert (np.diff(session) >= 0).all()


def test_the_label_is_a_coin_with_the_probability_given() -> None:
    rows = table(SynthSpec(num_rows=60_000, with_truth=True))
    chance, label = rows["probability"].to_numpy(), rows["label"].to_numpy()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        within = (chance >= low) & (chance < low + 0.2)
        assert label[within].mean() == pytest.approx(chance[within].mean(), abs=0.03)
    assert chance.std() > 0.2  # there is something to learn


def test_the_label_can_be_learnt_from_the_ids() -> None:
    rows = table(SynthSpec(num_rows=40_000, features=[SynthFeature(name="item", change=1.0, num_ids=50)], num_dense=0))
    item, label = rows["item"].to_numpy(), rows["label"].to_numpy()
    half = len(item) // 2
    rate = np.bincount(item[:half], label[:half], 50) / np.maximum(1, np.bincount(item[:half], minlength=50))
    guess, truth = rate[item[half:]], label[half:]
    above = guess[truth == 1][:, None] - guess[truth == 0][None, :500]
    assert (above > 0).mean() + 0.5 * (above == 0).mean() > 0.7  # AUC


@pytest.mark.parametrize("order", ["session", "time", "shuffled"])
def test_every_order_writes_the_same_rows(order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "_BUCKET_ROWS", 700)
    spec = SynthSpec(num_rows=5_000, order=order, features=default_features(num_user=1, num_sequences=1, num_item=1))
    rows = pq.read_table(write_synth(spec, tmp_path / "a.parquet", row_group_rows=1_000))
    assert multiset(rows) == multiset(pa.Table.from_batches(synth.batches(spec)))
    ts = rows["ts"].cast(pa.int64()).to_numpy()
    if order == "time":
        assert (np.diff(ts) >= 0).all()
    if order == "shuffled":
        assert abs(np.corrcoef(np.arange(len(ts)), ts)[0, 1]) < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_the_session_layout_holds_the_same_rows(tmp_path: Path) -> None:
    spec = SynthSpec(num_rows=5_000, features=[*PLAIN, SynthFeature(name="list", change=0.3, mean_length=4)])
    sessions = pq.read_table(write_synth(spec, tmp_path / "s.parquet", layout="sessions", row_group_rows=900))
    level = ["session", "user"]
    assert sessions.schema.metadata[b"lightning_intune.layout"] == b"sessions"
    assert sessions.schema.metadata[b"lightning_intune.session_column"] == b"session"
    assert sessions.schema.metadata[b"lightning_intune.time_column"] == b"ts"
    assert sessions.num_rows == pc.count_distinct(sessions["session"]).as_py()
    assert sessions.schema.field("list").type == pa.list_(pa.list_(pa.int64()))
    assert unfold_sessions(sessions, level).to_pylist() == table(spec).to_pylist()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SynthFeature(name="a", change=1.5), "change=1.5 is no chance"),
        (lambda: SynthFeature(name="a", change=0.1, mean_length=0.5), "mean_length=0.5 makes empty lists"),
        (lambda: SynthFeature(name="a", change=0.1, shift=1), "shift=1 needs a list"),
        (lambda: SynthFeature(name="ts", change=0.1), "the name is empty or one of"),
        (lambda: SynthSpec(num_rows=0), "num_rows=0"),
        (lambda: SynthSpec(events_per_session=0.5), "events_per_session=0.5 is outside 1 to 250"),
        (lambda: SynthSpec(features=[PLAIN[0], PLAIN[0]]), "two features are named 'user'"),
        (lambda: write_synth(SynthSpec(order="time"), "x", layout="sessions"), "parts the rows"),
        (lambda: write_synth(SynthSpec(), __file__), "exists, and would be overwritten"),
        (lambda: write_synth(SynthSpec(), "/nowhere/x"), "the folder '/nowhere' does not exist"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_a_mistake_is_named(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
