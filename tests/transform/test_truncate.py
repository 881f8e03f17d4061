"""Lists cut to their first or last values, and numbers held to a range, as RecD's and TorchArrow's transforms do."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import DedupPlan, DedupSparse
from lightning_intune.errors import ConfigError
from lightning_intune.flow.transform import ToBatch, ToJagged

IDS = st.none() | st.integers(-5, 300)
LISTS = st.lists(st.none() | st.lists(IDS, max_size=5), min_size=1, max_size=12)


def ids(feature: SparseFeature, column: pa.ChunkedArray) -> list[list[int]]:
    values, lengths = ToJagged([feature])(pa.table({"f": column}))["f"]
    edges = np.cumsum([0, *lengths.tolist()]).tolist()
    return [values[begin:end].tolist() for begin, end in itertools.pairwise(edges)]


def cut(row: list[Any] | None, count: int, keep: str) -> list[Any]:
    whole = row or []
    return whole[:count] if keep == "first" else whole[-count:]


def held(value: int | None) -> int:
    return 0 if value is None else min(max(value, 2), 90) + 1  # `id`: a value's row is one more


@given(rows=LISTS, count=st.integers(1, 6), keep=st.sampled_from(["first", "last"]), pieces=st.integers(1, 3))
def test_lists_are_cut_and_ids_held_to_their_range(rows: list[Any], count: int, keep: Any, pieces: int) -> None:
    feature = SparseFeature(
        name="f", num_embeddings=100, transform="id", max_values=count, keep=keep, clamp=(2, 90)
    )  # several chunks, as tables of several row groups have
    chunks = [pa.array(rows[piece::pieces], pa.list_(pa.int64())) for piece in range(pieces)]
    expected = [
        [held(value) for value in cut(row, count, keep)] for piece in range(pieces) for row in rows[piece::pieces]
    ]
    assert ids(feature, pa.chunked_array(chunks)) == expected


@given(rows=st.lists(st.sampled_from([[1, 2, 3], [1, 2, 9], [4], [], [None, 7]]), min_size=1, max_size=12))
@pytest.mark.parametrize("words", [False, True], ids=["ids", "words"])
def test_unique_rows_are_cut_to_what_all_rows_are(rows: list[Any], words: bool) -> None:
    column = pa.array(rows, pa.list_(pa.int64()))
    if words:
        column = column.cast(pa.list_(pa.string())).cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))
    features = [
        SparseFeature(name="f", num_embeddings=50, max_values=2),
        SparseFeature(name="last", column="f", num_embeddings=50, max_values=2, keep="last", ngram=2),
    ]
    table = pa.table({"f": column})
    plain = ToJagged(features)(table)
    unique = DedupSparse(features, DedupPlan.of(["f", "last"]))(table)
    for name in ("f", "last"):
        assert [part.tolist() for part in unique[name]] == [part.tolist() for part in plain[name]]


def test_ngrams_are_of_what_is_left() -> None:
    column = pa.chunked_array([[[7, 8, 9], [8, 9]]])
    last = SparseFeature(name="f", num_embeddings=1000, ngram=2, max_values=2, keep="last")
    first, second = ids(last, column)
    assert first == second
    assert len(first) == 1
    low = SparseFeature(name="f", num_embeddings=1000, ngram=2, clamp=(8, 8))
    assert ids(low, column)[0][0] == ids(low, column)[1][0]


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int8(), pa.uint64(), pa.bool_()], ids=str)
def test_a_range_wider_than_the_type_changes_nothing(kind: pa.DataType) -> None:
    column = pa.chunked_array([pa.array([[1, 0], [1]], pa.list_(pa.int64())).cast(pa.list_(kind))])
    plain = SparseFeature(name="f", num_embeddings=10, transform="id")
    wide = SparseFeature(name="f", num_embeddings=10, transform="id", clamp=(-1000, 1 << 63))
    assert ids(wide, column) == ids(plain, column) == [[2, 1], [2]]


def test_dense_values_are_held_to_their_range_before_the_logarithm() -> None:
    feature = DenseFeature(name="x", clamp=(0.0, np.e - 1), transform="log1p", default=50.0)
    batch = ToBatch(Schema(dense=[feature]))(pa.table({"x": [-3.0, 0.5, 99.0, None]}))
    assert batch.dense[:, 0].tolist() == pytest.approx([0.0, np.log(1.5), 1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_values": 0}, "max_values=0 leaves no value"),
        ({"clamp": (5, 1)}, r"clamp=\(5, 1\) is no range"),
        ({"clamp": (1,)}, r"clamp=\(1,\) is no range"),
        ({"keep": "middle"}, "keep='middle' is unknown"),
        ({"clamp": (0, 1), "transform": "bucket", "boundaries": [0.5]}, "clamp with transform='bucket'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SparseFeature(name="f", num_embeddings=10, **options)


def test_words_have_no_range() -> None:
    schema = Schema(sparse=[SparseFeature(name="f", num_embeddings=10, clamp=(0, 5))])
    with pytest.raises(ConfigError, match=r"'f' .clamp=\(0, 5\).: column 'f' holds string, .* integers"):
        schema.validate(pa.schema([("f", pa.string())]))
