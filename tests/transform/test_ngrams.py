"""Neighbours in a list as one category."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.config import Schema, SparseFeature
from lightning_intune.errors import ConfigError
from lightning_intune.flow.transform import ToJagged

LISTS = st.lists(st.lists(st.integers(0, 2) | st.none(), max_size=5) | st.none(), max_size=8)


def grams(rows: Any, n: int, **options: Any) -> list[list[int]]:
    """The embedding rows of each row's runs."""
    feature = SparseFeature(name="f", num_embeddings=1 << 40, ngram=n, **options)
    column = rows if isinstance(rows, pa.ChunkedArray) else pa.chunked_array([rows])
    values, lengths = ToJagged([feature])(pa.table({"f": column}))["f"]
    return [part.tolist() for part in values.split(lengths.tolist())] if len(lengths) else []


@given(lists=LISTS, cut=st.integers(0, 8), n=st.integers(2, 4))
def test_runs_are_equal_where_their_values_are_and_stay_within_their_row(lists: Any, cut: int, n: int) -> None:
    rows = pa.array(lists, pa.list_(pa.int64()))
    found = grams(rows, n)
    numbers: dict[tuple[int | None, ...], int] = {}
    for row, got in zip(lists, found, strict=True):
        runs = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)] if row else []
        assert len(got) == len(runs)
        for run, number in zip(runs, got, strict=True):
            assert (number == 0) == (None in run)
            assert None in run or numbers.setdefault(run, number) == number
    assert len(set(numbers.values())) == len(numbers)  # of 2**40 rows no two of these few meet
    chunks = pa.chunked_array([rows.slice(0, cut), rows.slice(cut)])
    assert grams(chunks, n) == found


@given(lists=LISTS)
def test_texts_and_their_dictionaries_say_the_same(lists: Any) -> None:
    texts = [None if row is None else [None if v is None else f"w{v}" for v in row] for row in lists]
    plain = pa.array(texts, pa.list_(pa.string()))
    coded = plain.cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))
    assert grams(plain, 2) == grams(coded, 2)


def test_the_order_and_the_seed_count() -> None:
    [[pair], [turned], [again]] = grams(pa.array([[1, 2], [2, 1], [1, 2]]), 2)
    assert pair == again != turned
    assert grams(pa.array([[1, 2]]), 2, seed=1) != [[pair]]


def test_what_has_no_neighbours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'f': ngram=0 .* Set ngram to 1 or more"):
        SparseFeature(name="f", num_embeddings=10, ngram=0)
    with pytest.raises(ConfigError, match="ngram=2 with transform='id'"):
        SparseFeature(name="f", num_embeddings=10, ngram=2, transform="id")
    schema = Schema(sparse=[SparseFeature(name="f", num_embeddings=10, ngram=2)])
    with pytest.raises(ConfigError, match=r"ngram=2.: column 'f' holds int64, and needs to hold lists"):
        schema.validate(pa.schema({"f": pa.int64()}))
