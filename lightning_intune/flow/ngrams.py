"""Values that follow one another in a row's list, as one category: the derived features of a sequence."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.config import SparseFeature
from lightning_intune.flow.features import MISSING_ROW, Lengths, Rows, value_words
from lightning_intune.flow.hashing import combine, to_rows


def ngram_counts(lengths: Lengths, n: int) -> Lengths:
    """How many runs of `n` values each row has.

    >>> ngram_counts(np.array([3, 1, 0], np.int32), 2).tolist()
    [2, 0, 0]
    """
    return np.maximum(lengths - np.int32(n - 1), np.int32(0))


@final
class NgramEncoder:
    """A function from the values of some rows' lists to the embedding row of every run of `feature.ngram` of them.

    Values come one row after the other, `lengths` [R] of each. Runs of one row only count, in order; a run with a null
    in it is row 0.

    >>> pairs = SparseFeature(name="pairs", num_embeddings=1000, ngram=2)
    >>> NgramEncoder(pairs, np.array([2, 3], np.int32))(pa.array([7, 8, 7, 8, 9])).tolist()
    [480, 480, 641]
    """

    def __init__(self, feature: SparseFeature, lengths: Lengths) -> None:
        self._feature, self._lengths = feature, lengths
        self.num_values = int(ngram_counts(lengths, feature.ngram).sum(dtype=np.int64))
        """Of the result."""

    def __call__(self, values: pa.Array) -> Rows:
        """The rows, 1 to `num_embeddings - 1` but for those with a null."""
        n, feature = self._feature.ngram, self._feature
        num_runs = len(values) - n + 1
        if num_runs <= 0:
            return np.empty(0, np.int64)
        words = value_words(values, feature.seed)
        runs = words[:num_runs].copy()
        for k in range(1, n):
            combine(runs, words[k : num_runs + k])
        whole = self._whole(num_runs)
        rows = to_rows(runs[whole], feature.num_embeddings - 1)
        rows += 1
        if values.null_count:
            is_null = pc.is_null(values).to_numpy(zero_copy_only=False)
            rows[np.logical_or.reduce([is_null[k : num_runs + k] for k in range(n)])[whole]] = MISSING_ROW
        return rows

    def _whole(self, num_runs: int) -> npt.NDArray[np.bool_]:
        """Which runs lie within one row: not those that begin at one of a row's last n - 1 values."""
        whole = np.ones(num_runs, np.bool_)
        ends = np.cumsum(self._lengths, dtype=np.int64)
        for k in range(1, self._feature.ngram):
            begins = (ends - k)[self._lengths >= k]
            whole[begins[begins < num_runs]] = False
        return whole
