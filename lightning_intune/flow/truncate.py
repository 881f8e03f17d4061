"""Lists cut to their first or last few values, as models want them: RecD's and TorchArrow's FirstX."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.config import SparseFeature
from lightning_intune.dedup.rows import Engine, Rows, as_words, copy_rows
from lightning_intune.flow.features import Lengths


def truncated(
    values: pa.Array, lengths: Lengths, feature: SparseFeature, *, engine: Engine = "auto"
) -> tuple[pa.Array, Lengths]:
    """The values [N] of some rows' lists, one row after the other, and how many each has, cut as `feature` says.

    >>> first = SparseFeature(name="f", num_embeddings=10, max_values=2)
    >>> values, lengths = truncated(pa.array([1, 2, 3, 4]), np.array([3, 1], np.int32), first)
    >>> values.to_pylist(), lengths.tolist()
    ([1, 2, 4], [2, 1])
    """
    if feature.max_values is None:
        return values, lengths
    kept = np.minimum(lengths, np.int32(min(feature.max_values, np.iinfo(np.int32).max)))
    if int(kept.sum(dtype=np.int64)) == len(values):
        return values, lengths
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    if feature.keep == "last":
        starts += lengths - kept
    return _gathered(values, starts, kept, engine), kept


def _gathered(values: pa.Array, starts: npt.NDArray[np.int64], lengths: Lengths, engine: Engine) -> pa.Array:
    """The runs of `values` that begin at `starts`, one after the other; straight from Arrow's memory where it is."""
    kind = values.type
    plain = values.indices if isinstance(values, pa.DictionaryArray) else values
    if plain.null_count or not (pa.types.is_integer(plain.type) or pa.types.is_floating(plain.type)):
        ends = np.cumsum(lengths, dtype=np.int64)
        place = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
        return values.take(pa.array(place))
    rows = Rows(words=as_words(plain.to_numpy(zero_copy_only=False)), starts=starts, lengths=lengths)
    words = copy_rows(rows, np.arange(len(lengths)), engine=engine)
    made = pa.Array.from_buffers(plain.type, len(words), [None, pa.py_buffer(words)])
    if not isinstance(values, pa.DictionaryArray):
        return made
    return pa.DictionaryArray.from_arrays(made, values.dictionary, ordered=kind.ordered, safe=False)
