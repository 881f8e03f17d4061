"""Arrow columns as rows that can be compared, without a copy where Arrow's memory allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_list
from lightning_intune.dedup.rows import Rows


def column_rows(column: pa.ChunkedArray) -> Rows:
    """The rows of a column, scalars or lists of them; equal bytes mean that its feature takes equal values from them.

    A null list counts as an empty one, as it does in a batch. Text, and values with nulls among them, stand as numbers
    that are equal where the values are; so compare rows of one call only.

    >>> rows = column_rows(pa.chunked_array([[[1, 2], None, [3]]]))
    >>> rows.lengths.tolist(), rows.words[rows.starts[2]]
    ([2, 0, 1], np.uint64(3))
    """
    array = _one_chunk(column)
    if not is_list(array.type):
        num_rows = len(array)
        ones = np.ones(num_rows, np.int32)
        return Rows.packed(_words(array), ones)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets).astype(np.int32)
    if array.null_count:
        lengths[pc.is_null(array).to_numpy(zero_copy_only=False)] = 0
    first = int(offsets[0]) if len(offsets) else 0
    last = int(offsets[-1]) if len(offsets) else 0
    words = Rows.packed(_words(array.values.slice(first, last - first)), lengths[:0]).words
    return Rows(words=words, starts=offsets[:-1].astype(np.int64) - first, lengths=lengths)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return pa.concat_arrays(column.chunks)


def _words(values: pa.Array) -> npt.NDArray[Any]:
    """Fixed-width numbers as they lie; all else as codes."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        indices = values.indices
        return (pc.fill_null(pc.cast(indices, pa.int64()), -1) if indices.null_count else indices).to_numpy(
            zero_copy_only=False
        )
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if plain and values.null_count == 0:
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.zeros(len(values), np.uint8)
    return pc.dictionary_encode(values, null_encoding="encode").indices.to_numpy(zero_copy_only=False)
