"""Quantile boundaries from one pass: exact while it is small, within its bound beyond, the same at every width."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.config import SparseFeature
from lightning_intune.errors import ConfigError
from lightning_intune.flow import QuantileSketch, fit_boundaries
from lightning_intune.flow.features import SparseEncoder


def sketch_of(numbers: list[float] | np.ndarray, *, size: int = 4096) -> QuantileSketch:
    sketch = QuantileSketch(size)
    sketch.add(pa.array(numbers, pa.float64()))
    return sketch


def test_a_hundred_numbers_are_cut_into_four_times_twenty_five() -> None:
    assert sketch_of(list(range(1, 101))).boundaries(4) == (26.0, 51.0, 76.0)
    feature = SparseFeature(name="x", transform="bucket", boundaries=(26.0, 51.0, 76.0))
    rows = SparseEncoder(feature)(pa.array(range(1, 101)))
    assert np.bincount(rows).tolist() == [0, 25, 25, 25, 25]


def test_a_number_that_is_most_of_them_is_a_bin_of_its_own() -> None:
    assert sketch_of([0.0] * 90 + [1.0] * 5 + [2.0] * 5).boundaries(10) == (1.0,)
    assert sketch_of([0.0] * 10 + [7.0] * 90).boundaries(4) == (7.0,)


def test_one_number_alone_is_one_boundary() -> None:
    assert sketch_of([3.5]).boundaries(8) == (3.5,)


def test_missing_and_infinite_numbers_do_not_count() -> None:
    sketch = QuantileSketch()
    sketch.add(pa.chunked_array([pa.array([1, None, 3]), pa.array([5], pa.int64())]))
    sketch.add(pa.array([float("nan"), float("inf"), -math.inf]))
    assert (sketch.count, sketch.boundaries(3)) == (3, (3.0, 5.0))


@given(
    parts=st.lists(st.lists(st.integers(-1000, 1000), max_size=60), min_size=1, max_size=12),
    num_bins=st.integers(2, 9),
)
def test_ranks_are_within_the_bound_whatever_is_merged(parts: list[list[int]], num_bins: int) -> None:
    size, whole = 8, QuantileSketch(8)
    for part in parts:
        whole.merge(sketch_of([float(number) for number in part], size=size))
    numbers = np.sort(np.concatenate([np.array(part, float) for part in parts]))
    assert whole.count == len(numbers)
    if not len(numbers):
        return
    bound = len(numbers) * max(0.0, math.log2(max(1.0, len(numbers) / size)) + 1) / (2 * size) + 1
    found = whole.boundaries(num_bins)
    assert list(found) == sorted(set(found))
    assert set(found) <= set(numbers.tolist())
    wanted = len(numbers) * np.arange(1, num_bins) / num_bins
    for cut in found:
        below, up_to = np.searchsorted(numbers, cut, "left"), np.searchsorted(numbers, cut, "right")
        assert any(below - bound <= rank <= up_to + bound for rank in wanted)


def test_a_hundred_thousand_numbers_are_cut_evenly_in_little_memory() -> None:
    numbers = np.random.default_rng(0).permutation(100_000).astype(float)
    sketch = QuantileSketch(512)
    for part in np.array_split(numbers, 97):
        sketch.add(pa.array(part))
    counts = np.histogram(numbers, [-np.inf, *sketch.boundaries(20), np.inf])[0]
    bound = 2 * 100_000 * math.log2(100_000 / 512) / (2 * 512)  # a bin has two ends
    assert np.abs(counts - 5_000).max() < bound
    assert sum(map(len, sketch._levels)) <= 512 * len(sketch._levels)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for part in range(3):
        table = pa.table({"price": rng.gamma(2.0, 9.0, 700), "hour": rng.integers(0, 24, 700), "shop": ["a"] * 700})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=100)
    return tmp_path


def test_files_give_the_same_at_every_width_and_tell_their_rows(files: Path) -> None:
    told: list[int] = []
    narrow = fit_boundaries(str(files), ["price", "hour"], 16, size=64, on_rows=told.append)
    wide = fit_boundaries(str(files), ["price", "hour"], 16, size=64, num_workers=5)
    assert narrow == wide
    assert sum(told) == 2100
    assert (len(narrow["price"]), len(narrow["hour"]) <= 15) == (15, True)
    whole = np.sort(pq.read_table(files)["price"].to_numpy())
    exact = fit_boundaries(str(files), ["price"], 16)["price"]
    assert exact == tuple(whole[[math.floor(2100 * i / 16) for i in range(1, 16)]])


def test_filters_choose_the_rows_that_count(files: Path) -> None:
    assert fit_boundaries(str(files), ["hour"], 24, filters=[("hour", ">=", 22)]) == {"hour": (23.0,)}


@pytest.mark.parametrize(
    ("columns", "num_bins", "size", "words"),
    [
        (["shop"], 4, 64, "column 'shop' is string, no number"),
        (["prize"], 4, 64, "did you mean 'price'"),
        (["price"], 1, 64, "num_bins=1 makes no cut"),
        (["price"], 4, 1, "size=1 keeps too few numbers"),
        ([], 4, 64, "empty"),
    ],
    ids=["text", "unknown", "one-bin", "small", "none"],
)
def test_what_cannot_be_cut_is_said_before_any_row_is_read(
    files: Path, columns: list[str], num_bins: int, size: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        fit_boundaries(str(files), columns, num_bins, size=size)


def test_a_column_without_numbers_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([None, float("nan")], pa.float64())}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="column 'x' holds no finite number"):
        fit_boundaries(str(tmp_path), ["x"], 4)
    with pytest.raises(ConfigError, match="no finite number was added"):
        QuantileSketch().boundaries(4)
