from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import (
    Batch,
    DedupBatch,
    DedupFeatures,
    DedupPlan,
    DedupSparse,
    FeatureStats,
    InverseKeyedJaggedTensor,
    SessionsToBatch,
    plan_for,
)
from lightning_intune.dedup.footer import session_level
from lightning_intune.dedup.measure import measure
from lightning_intune.dedup.plan import dedup_factor
from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, ParquetSource, Rebatch
from lightning_intune.flow.transform import ToBatch, ToJagged
from tests.dedup.ragged_data import jagged_batches, sessions

SCHEMA = Schema(
    dense=[DenseFeature(name="price")],
    sparse=[
        SparseFeature(name="user", num_embeddings=50),
        SparseFeature(name="history", num_embeddings=50),
        SparseFeature(name="words", num_embeddings=50),
        SparseFeature(name="history pairs", column="history", num_embeddings=50, ngram=2),
        SparseFeature(name="word pairs", column="words", num_embeddings=50, ngram=2),
        SparseFeature(name="age", num_embeddings=5, transform="bucket", boundaries=[1.0, 2.0]),
        SparseFeature(name="item", num_embeddings=50, transform="id"),
    ],
    labels=["click"],
)
USERS = st.integers(0, 3) | st.none()
LISTS = st.lists(st.integers(0, 2) | st.none(), max_size=4) | st.none()
WORDS = st.lists(st.sampled_from(["a", "b"]) | st.none(), max_size=3) | st.none()
AGES = st.sampled_from([0.5, 1.5, float("nan"), None])


@st.composite
def impressions(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 12))
    columns = {
        "user": pa.array(draw(st.lists(USERS, min_size=count, max_size=count)), pa.int64()),
        "history": pa.array(draw(st.lists(LISTS, min_size=count, max_size=count)), pa.list_(pa.int32())),
        "words": pa.array(draw(st.lists(WORDS, min_size=count, max_size=count)), pa.large_list(pa.string())),
        "age": pa.array(draw(st.lists(AGES, min_size=count, max_size=count)), pa.float64()),
        "item": pa.array(range(count), pa.int16()),
        "price": pa.array([1.0] * count, pa.float64()),
        "click": pa.array([i % 2 for i in range(count)], pa.int8()),
    }
    table = pa.table(columns)
    cut = draw(st.integers(0, count))
    return pa.concat_tables([table.slice(0, cut), table.slice(cut)]).slice(draw(st.integers(0, count)))


def equal_batches(one: Batch, other: Batch) -> None:
    assert torch.equal(one.dense, other.dense)
    assert torch.equal(one.labels, other.labels)
    assert one.sparse.keys() == other.sparse.keys()
    for key in list(other.sparse.keys()):
        assert torch.equal(one.sparse[key][0], other.sparse[key][0])
        assert torch.equal(one.sparse[key][1], other.sparse[key][1])


@given(table=impressions(), engine=st.sampled_from(["numba", "arrow"]))
def test_transforming_unique_rows_gives_the_batch_of_all_rows(table: pa.Table, engine: Any) -> None:
    plan = DedupPlan.of(["user", "words"], ["history"], ["age"])
    dedup = ToBatch(SCHEMA, sparse=DedupSparse(SCHEMA.sparse, plan, engine=engine))
    equal_batches(dedup(table), ToBatch(SCHEMA)(table))


def test_dictionary_encoded_columns_are_deduplicated_too() -> None:
    chunks = [pa.array(["a", "a", "b"]).dictionary_encode(), pa.array(["b", "b", None]).dictionary_encode()]
    table = pa.table({"name": pa.chunked_array(chunks)})
    sparse = DedupSparse([SparseFeature(name="name", num_embeddings=9)], DedupPlan.of(["name"]))(table)
    assert isinstance(sparse, InverseKeyedJaggedTensor)
    assert sparse.inverse("name").tolist() == [0, 0, 1, 1, 1, 2]


def test_a_plan_without_groups_leaves_the_batch_plain() -> None:
    table = pa.table({"user": [1, 1]})
    assert not isinstance(DedupSparse(SCHEMA.sparse[:1], DedupPlan())(table), InverseKeyedJaggedTensor)


def fold(table: pa.Table, counts: list[int]) -> pa.Table:
    """Sessions of `counts` impressions; `user`, `words` are the session's, taken from its first row."""
    bounds = np.cumsum([0, *counts])
    columns: dict[str, pa.Array] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name in ("user", "words"):
            picked = [column[int(b)].as_py() if n else None for b, n in zip(bounds, counts, strict=False)]
            columns[name] = pa.array(picked, column.type)
        else:
            columns[name] = pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), column)
    return pa.table(columns)


@given(counts=st.lists(st.integers(0, 4), max_size=6), begin=st.integers(0, 3), data=st.data())
def test_sessions_give_the_batch_of_their_rows(counts: list[int], begin: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    count = sum(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    table = pa.table(
        {
            "user": pa.array(owner % 3, pa.int64()),
            "words": pa.array([["a", "b"][: i % 3] for i in owner], pa.list_(pa.string())),
            "history": pa.array([rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in owner], pa.list_(pa.int64())),
            "age": pa.array(rng.random(count) * 3),
            "item": pa.array(np.arange(count) % 40),
            "price": pa.array(rng.random(count)),
            "click": pa.array(np.arange(count) % 2),
        }
    )
    plan = DedupPlan.of(["history"]) if data.draw(st.booleans()) else None
    to_batch = SessionsToBatch(SCHEMA, session_level=["user", "words"], plan=plan)
    folded = fold(table, counts)
    to_batch.validate(folded.schema)
    equal_batches(to_batch(folded), ToBatch(SCHEMA)(table))
    begin = min(begin, len(counts))
    rest = pickle.loads(pickle.dumps(to_batch))(folded.slice(begin))
    equal_batches(rest, ToBatch(SCHEMA)(table.slice(sum(counts[:begin]))))


def test_sessions_that_make_no_sense_are_refused() -> None:
    schema = Schema(sparse=[SparseFeature(name="user", num_embeddings=9)], labels=["click"])
    to_batch = SessionsToBatch(schema, session_level=[])
    with pytest.raises(ValueError, match=r"'click' has 1 entries in session 1 .* 'user' has 2"):
        to_batch(pa.table({"user": [[1], [2, 3]], "click": [[0], [1]]}))
    with pytest.raises(ConfigError, match="names every column"):
        SessionsToBatch(schema, session_level=["user", "click"])
    with pytest.raises(ConfigError, match="'user' holds int64, one value for a whole session"):
        to_batch.validate(pa.table({"user": [1], "click": [[1]]}).schema)
    with pytest.raises(ConfigError, match="does not say that its rows are sessions"):
        session_level({b"lightning_intune.layout": b"rows"})


def test_a_session_file_says_which_columns_are_the_session_s(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 2], "click": [[0, 1], [1]]}).replace_schema_metadata(
        {b"lightning_intune.layout": b"sessions", b"lightning_intune.session_level": b'["user"]'}
    )
    pq.write_table(table, tmp_path / "s.parquet")
    level = session_level(pq.read_schema(tmp_path / "s.parquet").metadata)
    schema = Schema(sparse=[SparseFeature(name="user", num_embeddings=9, transform="id")], labels=["click"])
    source = ParquetSource(str(tmp_path), columns=schema.columns)
    read = ElasticMapper(source, source.reader(), 1)
    stage = ElasticMapper(Rebatch(read, 2), SessionsToBatch(schema, session_level=level), 1)
    with ElasticLoader(stage) as loader:
        (batch,) = loader
    assert batch.sparse["user"][0].tolist() == [2, 2, 3]


def plain_batches(count: int) -> list[Batch]:
    made: list[Batch] = []
    for seed in range(count):
        jagged = sessions(4, 3, seed=seed)
        rows = jagged.stride()
        made.append(Batch(dense=torch.ones(rows, 1), sparse=jagged, labels=torch.ones(rows, 1)))
    return made


@given(cut=st.integers(0, 4))
def test_the_node_resumes_after_any_batch(cut: int) -> None:
    batches = plain_batches(4)
    node = DedupFeatures(IterableSource(batches), [["f0", "f1"]])
    items = iter(node)
    for _ in range(cut):
        next(items)
    state = node.state_dict()
    node.reset(state)
    rest = list(node_items(node))
    assert len(rest) == 4 - cut
    for one, other in zip(rest, batches[cut:], strict=True):
        assert isinstance(one.sparse, InverseKeyedJaggedTensor)
        equal_batches(one, other)


def node_items(node: DedupFeatures) -> list[Batch]:
    items: list[Batch] = []
    while True:
        try:
            items.append(next(node))
        except StopIteration:
            return items


def test_it_runs_in_worker_processes() -> None:
    batches = plain_batches(5)
    stage = ElasticMapper(IterableSource(batches), DedupBatch([["f0"], ["f1"]]), 1, method="process")
    with ElasticLoader(stage) as loader:
        for one, other in zip(loader, batches, strict=True):
            assert isinstance(one.sparse, InverseKeyedJaggedTensor)
            equal_batches(one, other)


def test_an_item_that_is_no_batch_is_named() -> None:
    with pytest.raises(StageError, match=r"stage 'dedup': item 0 .* is of int, not a Batch"):
        list(DedupFeatures(IterableSource([1]), [["f0"]]))


@given(jagged=jagged_batches((torch.int64,)))
def test_deduplicating_twice_is_once(jagged: Any) -> None:
    rows = jagged.stride()
    batch = Batch(dense=torch.ones(rows, 1), sparse=jagged, labels=torch.ones(rows, 1))
    once = DedupBatch([["f0"]])(batch)
    assert DedupBatch([["f0"]])(once) is once


# The plan


def stats(name: str, stay: float, length: float = 20.0, samples: float = 17.0) -> FeatureStats:
    return FeatureStats(name=name, mean_length=length, value_bytes=8, samples_per_session=samples, stay_share=stay)


def test_features_that_change_together_share_an_inverse_and_fresh_ones_are_left_out() -> None:
    rng = np.random.default_rng(0)
    common, other = rng.random(5000) < 0.02, rng.random(5000) < 0.3
    changes = np.stack([common, common, other, np.ones(5000, np.bool_)])
    found = [stats(name, 1 - float(row.mean())) for name, row in zip("abcd", changes, strict=True)]
    assert DedupPlan.choose(found, changes).names == (("a", "b"), ("c",))
    assert DedupPlan.choose(found).names == (("a",), ("b",), ("c",))
    assert DedupPlan.choose([stats("a", 1.0, samples=1.0)]).names == ()


def test_a_short_feature_is_not_worth_an_inverse_of_its_own() -> None:
    assert DedupPlan.choose([stats("a", 1.0, length=0.5)]).names == ()


@given(samples=st.integers(1, 40), change=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_model_s_factor_is_what_is_measured(samples: int, change: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_sessions = 20_000 // samples
    fresh = rng.random((num_sessions, samples)) < change
    fresh[:, 0] = True
    measured = fresh.size / fresh.sum()
    assert dedup_factor(samples, 1 - change) == pytest.approx(measured, rel=0.06)


def test_a_plan_from_rows_by_hand() -> None:
    history = [list(range(i, i + 10)) for i in range(30)]
    table = pa.table({"s": [1] * 30, "user": [[5] * 9] * 30, "history": history, "item": list(range(30))})
    found, changes = measure(table, ["user", "history", "item"], session_column="s")
    assert [one.stay_share for one in found] == [1.0, 0.0, 0.0]
    assert changes.sum(axis=1).tolist() == [0, 29, 29]
    assert (found[1].shift_share, found[1].new_values) == (1.0, 1.0)
    assert found[1].partial_factor == pytest.approx(30 / (1 + 29 * 0.1))
    assert plan_for(table, ["user", "history", "item"]).names == (("user",),)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DedupPlan.of(["a"], ["a"]), "named twice"),
        (lambda: DedupPlan.of([]), "no feature"),
        (lambda: DedupPlan.of("ab"), "is a text"),  # pyright: ignore[reportUnknownLambdaType]
        (lambda: DedupPlan.choose([], min_factor=0.5), "min_factor"),
        (lambda: DedupSparse(SCHEMA.sparse, DedupPlan.of(["usr"])), "'usr' is not among"),
        (lambda: measure(pa.table({"a": [1]}), ["b"]), "no column 'b'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


LISTS_OF_NULLS = pa.array([[None], [None], None, [None, 1], []], pa.list_(pa.int64()))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, None, 1, 1]),
        LISTS_OF_NULLS,
        LISTS_OF_NULLS.cast(pa.list_(pa.string())),
        pa.nulls(5, pa.list_(pa.int64())),
        pa.nulls(5),
        pa.array([[None], [None], [], None, [None]], pa.list_(pa.null())),
        pa.array([[1, 2], [1, 2], None, [1, None], [3, 4]], pa.list_(pa.int64(), 2)),
    ],
    ids=["nulls", "lists of nulls", "texts and nulls", "null lists", "no type", "lists of no type", "fixed lists"],
)
def test_missing_values_are_what_they_are_without_deduplication(column: pa.Array) -> None:
    feature = SparseFeature(name="f", num_embeddings=50)
    table = pa.table({"f": column})
    unique, plain = DedupSparse([feature], DedupPlan.of(["f"]))(table), ToJagged([feature])(table)
    assert [part.tolist() for part in unique["f"]] == [part.tolist() for part in plain["f"]]


@pytest.mark.parametrize("column", [[[[1]], [[1]]], [{"a": 1}, {"a": 1}]], ids=["nested", "struct"])
def test_a_column_that_is_no_list_of_values_is_named(column: list[Any]) -> None:
    sparse = DedupSparse([SparseFeature(name="f", column="deep", num_embeddings=50)], DedupPlan.of(["f"]))
    with pytest.raises(ConfigError, match=r"column 'deep' holds .* leave it out of the plan"):
        sparse(pa.table({"deep": column}))


@pytest.mark.slow
def test_a_session_of_a_million_rows_is_stored_as_one() -> None:
    table = pa.table({"f": pa.array([[1, 2, 3]]).take(pa.array(np.zeros(1_000_000, np.int64)))})
    made = DedupSparse([SparseFeature(name="f", num_embeddings=50)], DedupPlan.of(["f"]))(table)
    assert (made.stride(), len(made.values())) == (1_000_000, 3)
