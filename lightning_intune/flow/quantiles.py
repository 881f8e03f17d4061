"""The boundaries of bins that hold equally many rows, found in one pass over data of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_number
from lightning_intune.errors import ConfigError
from lightning_intune.flow.elastic import ElasticMapper
from lightning_intune.flow.filesystems import Paths
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.flow.row_groups import ReadRowGroup, RowGroup
from lightning_intune.flow.source import ParquetSource

_Floats = npt.NDArray[np.float64]


@final
class QuantileSketch:
    """What is known of a stream of numbers in bounded memory, enough to cut it into bins of equal counts.

    Nulls, NaN and infinite numbers are left out. Up to `size` numbers it is exact. Beyond that it holds at most
    `size` numbers for each doubling of their count n, and a rank that it tells is wrong by at most
    n x log2(n / size) / (2 x size): 0.25 % of a thousand million at 4096. It draws no random number, so one
    order of `add` and `merge` gives one result. ConfigError for a `size` below 2.

    Source: Munro, Paterson (1980), "Selection and sorting with limited storage": full buffers of one weight are merged,
    and every other number of them stands for two.

    >>> sketch = QuantileSketch()
    >>> sketch.add(pa.array([*range(1, 101), None, float("nan")]))
    >>> sketch.count, sketch.boundaries(4)
    (100, (26.0, 51.0, 76.0))
    """

    def __init__(self, size: int = 4096) -> None:
        if size < 2:
            raise ConfigError(f"QuantileSketch: size={size} keeps too few numbers. Set it to 2 or more.")
        self._size = size
        # By level: sorted numbers, `size` at most, each of which stands for 2**level of those added.
        self._levels: list[_Floats] = [np.empty(0)]
        self._odd: list[int] = [0]  # which of two neighbours the next merge of a level keeps; it alternates
        self.count = 0
        """Numbers added so far."""

    def add(self, values: pa.Array | pa.ChunkedArray) -> None:
        """Take these numbers in."""
        numbers = pc.cast(values, pa.float64(), safe=False)
        flat: _Floats = pc.fill_null(numbers, float("nan")).to_numpy()
        finite = np.sort(flat[np.isfinite(flat)])
        self.count += len(finite)
        self._put(0, finite)

    def merge(self, other: QuantileSketch) -> None:
        """Take in what `other`, which stays as it is, knows."""
        self.count += other.count
        for level, numbers in enumerate(other._levels):
            self._put(level, numbers)

    def boundaries(self, num_bins: int) -> tuple[float, ...]:
        """Ascending numbers that cut what was added into at most `num_bins` bins of about equal counts.

        A number x is in bin `how many boundaries are <= x`, as in `SparseFeature(transform="bucket")`. Numbers that
        are repeated more often than a bin holds leave fewer bins. One boundary where all numbers are the same.
        ConfigError for fewer than 2 bins, and where nothing was added.
        """
        _check_bins("QuantileSketch", num_bins)
        if self.count == 0:
            raise ConfigError("QuantileSketch: no finite number was added, so there is nothing to cut. Leave it out.")
        numbers = np.concatenate(self._levels)
        weights = np.concatenate([np.full(len(part), 2.0**level) for level, part in enumerate(self._levels)])
        order = np.argsort(numbers, kind="stable")
        numbers, reached = numbers[order], np.cumsum(weights[order])
        ranks = reached[-1] * np.arange(1, num_bins) / num_bins
        cuts = np.unique(numbers[np.searchsorted(reached, ranks, side="right")])
        above = cuts[cuts > numbers[0]]  # one at the least number would leave the first bin empty
        return tuple((above if len(above) else cuts[:1]).tolist())

    def _put(self, level: int, numbers: _Floats) -> None:
        while len(self._levels) <= level:
            self._levels.append(np.empty(0))
            self._odd.append(0)
        held = np.sort(np.concatenate([self._levels[level], numbers]))
        if len(held) <= self._size:
            self._levels[level] = held
            return
        first = self._odd[level]
        self._odd[level] = 1 - first
        num_even = len(held) // 2 * 2
        self._levels[level] = held[num_even:]
        self._put(level + 1, held[:num_even][first::2])


def fit_boundaries(
    paths: Paths,
    columns: Sequence[str],
    num_bins: int,
    *,
    num_workers: int = 1,
    size: int = 4096,
    filesystem: Any = None,
    filters: Any = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[float, ...]]:
    """Quantile boundaries of each of `columns`, in one pass over the Parquet files, as `SparseFeature` takes them.

    Row groups are read and summarised in a stage of `num_workers` threads, and put together in their order, so that
    the result is the same at every width. Memory: `num_workers` row groups, and a `QuantileSketch` per column.
    `on_rows` is told how many rows each row group had. ConfigError as of `ParquetSource` and `QuantileSketch`, and for
    a column that holds no number.
    """
    source = ParquetSource(paths, columns=list(columns), filesystem=filesystem, filters=filters)
    for field in source.arrow_schema:
        if not is_number(field.type):
            raise ConfigError(f"fit_boundaries: column '{field.name}' is {field.type}, no number. Leave it out.")
    found = {name: QuantileSketch(size) for name in columns}  # a bad size shows before any row is read
    _check_bins("fit_boundaries", num_bins)
    stage = ElasticMapper(source, _Summary(source.reader(), size), num_workers, name="summarise")
    with ElasticLoader(stage) as parts:
        for num_rows, sketches in parts:
            for name, sketch in sketches.items():
                found[name].merge(sketch)
            on_rows(num_rows)
    for name, sketch in found.items():
        if sketch.count == 0:
            raise ConfigError(f"fit_boundaries: column '{name}' holds no finite number. Leave it out.")
    return {name: sketch.boundaries(num_bins) for name, sketch in found.items()}


def _check_bins(what: str, num_bins: int) -> None:
    if num_bins < 2:
        raise ConfigError(f"{what}: num_bins={num_bins} makes no cut. Set it to 2 or more.")


@final
class _Summary:
    """A function from a row group to how many rows it has, and a sketch of each column."""

    def __init__(self, read: ReadRowGroup, size: int) -> None:
        self._read, self._size = read, size

    def __call__(self, group: RowGroup) -> tuple[int, dict[str, QuantileSketch]]:
        table: pa.Table = self._read(group)
        return table.num_rows, {name: self._of(table.column(name)) for name in table.column_names}

    def _of(self, column: pa.ChunkedArray) -> QuantileSketch:
        sketch = QuantileSketch(self._size)
        sketch.add(column)
        return sketch
