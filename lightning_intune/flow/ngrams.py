"""Values that follow one another in a row's list, as one category: the derived features of a sequence."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.config import SparseFeature
from lightning_intune.flow.features import (
    MAX_UNUSED,
    MISSING_ROW,
    KeptTables,
    Lengths,
    Rows,
    clamped,
    places_of,
    value_words,
)
from lightning_intune.flow.hashing import Words, combine, to_rows

_BLOCK_RUNS = 16_384


def ngram_counts(lengths: Lengths, n: int) -> Lengths:
    """How many runs of `n` values each row has.

    >>> ngram_counts(np.array([3, 1, 0], np.int32), 2).tolist()
    [2, 0, 0]
    """
    return np.maximum(lengths - np.int32(n - 1), np.int32(0))


@final
class NgramEncoder:
    """A function from the values of some rows' lists to the embedding row of every run of `feature.ngram` of them.

    Values [N] come one row after the other, `lengths` [R] of each. Runs of one row only count, in order; a run with a
    null in it is row 0. Picklable, and safe in several threads.

    >>> pairs = SparseFeature(name="pairs", num_embeddings=1000, ngram=2)
    >>> NgramEncoder(pairs)(pa.array([7, 8, 7, 8, 9]), np.array([2, 3], np.int32)).tolist()
    [480, 480, 641]
    """

    def __init__(self, feature: SparseFeature) -> None:
        self._feature = feature
        self._kept = KeptTables()

    def __call__(self, values: pa.Array, lengths: Lengths) -> Rows:
        """The rows, 1 to `num_embeddings - 1` but for those with a null."""
        if isinstance(values, pa.DictionaryArray) and not _suits(values.dictionary, len(values)):
            values = values.dictionary_decode()
        num_runs = len(values) - self._feature.ngram + 1
        out = np.empty(int(ngram_counts(lengths, self._feature.ngram).sum(dtype=np.int64)), np.int64)
        end = 0
        whole = self._whole(lengths, num_runs) if num_runs > 0 else np.empty(0, np.bool_)
        for begin in range(0, num_runs, _BLOCK_RUNS):  # in blocks that stay in the cache
            of_block = whole[begin : begin + _BLOCK_RUNS]
            rows = self._rows(values.slice(begin, len(of_block) + self._feature.ngram - 1), of_block)
            out[end : end + len(rows)] = rows
            end += len(rows)
        return out

    def _rows(self, values: pa.Array, whole: npt.NDArray[np.bool_]) -> Rows:
        words, num_runs = self._words(values), len(whole)
        runs = words[:num_runs].copy()
        for k in range(1, self._feature.ngram):
            combine(runs, words[k : num_runs + k])
        rows = to_rows(runs[whole], self._feature.num_embeddings - 1)
        rows += 1
        if values.null_count:
            is_null = pc.is_null(values).to_numpy(zero_copy_only=False)
            has_null = np.logical_or.reduce([is_null[k : num_runs + k] for k in range(self._feature.ngram)])
            rows[has_null[whole]] = MISSING_ROW
        return rows

    def _words(self, values: pa.Array) -> Words:
        if not isinstance(values, pa.DictionaryArray):
            return value_words(clamped(values, self._feature.clamp), self._feature.seed)
        return self._kept.get(values.dictionary, self._table)[places_of(values)].view(np.uint64)

    def _table(self, dictionary: pa.Array) -> Rows:
        """The words of each distinct value, and last those of a missing one."""
        words = value_words(clamped(dictionary, self._feature.clamp), self._feature.seed)
        return np.append(words, np.uint64(0)).view(np.int64)

    def _whole(self, lengths: Lengths, num_runs: int) -> npt.NDArray[np.bool_]:
        """Which runs lie within one row: not those that begin at one of a row's last n - 1 values."""
        whole = np.ones(num_runs, np.bool_)
        ends = np.cumsum(lengths, dtype=np.int64)
        for k in range(1, self._feature.ngram):
            begins = (ends - k)[lengths >= k]
            whole[begins[begins < num_runs]] = False
        return whole


def _suits(dictionary: pa.Array, num_values: int) -> bool:
    """Whether hashing each distinct value spares work: not for a thin slice of a big file."""
    return dictionary.null_count == 0 and len(dictionary) <= MAX_UNUSED * (num_values + 1024)
