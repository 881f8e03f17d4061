"""Arrow columns as rows that can be compared and copied, without a copy where Arrow's memory allows it."""

from __future__ import annotations

from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_list, is_text
from lightning_intune.dedup.rows import Engine, Lengths, Places, Rows, as_words, copy_rows
from lightning_intune.flow.features import flat_values


@final
class Column:
    """A column of scalars or lists: its rows to compare, and the values of some of them.

    >>> column = Column(pa.chunked_array([[[1, 2], [1, 2], [3]]]))
    >>> values, lengths = column.take(np.array([0, 2]))
    >>> values.to_pylist(), lengths.tolist()
    ([1, 2, 3], [2, 1])
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._array = as_one(column)
        self.rows = _rows(self._array)
        """As `column_rows` says."""

    def take(self, places: Places, *, engine: Engine = "auto") -> tuple[pa.Array, Lengths]:
        """The values of those rows, one row after the other, and how many each has."""
        values = self._array.values if is_list(self._array.type) else self._array
        (rows, *others), kind = self.rows, values.type
        if others or values.null_count or not (_is_plain(kind) or pa.types.is_dictionary(kind)):
            chunks, counts = flat_values(pa.chunked_array([self._array.take(pa.array(places))]))
            return chunks[0], np.ones(len(places), np.int32) if counts is None else counts
        # Copied straight from Arrow's memory: its `take` of a list column costs 50 us, whatever it takes.
        words = copy_rows(rows, places, engine=engine)
        buffers = [None, pa.py_buffer(words)]
        if isinstance(values, pa.DictionaryArray):
            indices = pa.Array.from_buffers(kind.index_type, len(words), buffers)
            return pa.DictionaryArray.from_arrays(indices, values.dictionary, safe=False), rows.lengths[places]
        return pa.Array.from_buffers(kind, len(words), buffers), rows.lengths[places]


def column_rows(column: pa.ChunkedArray) -> list[Rows]:
    """The rows of a column, scalars or lists of them, as one or two sets of rows: equal where all sets are.

    Equal bytes mean that a feature takes equal values from them. A null list counts as an empty one, as it does in a
    batch. Texts are two sets, their bytes and where these part. Values with nulls among them stand as numbers that are
    equal where the values are; so compare rows of one call only.

    >>> (rows,) = column_rows(pa.chunked_array([[[1, 2], None, [3]]]))
    >>> rows.lengths.tolist(), rows.words[rows.starts[2]]
    ([2, 0, 1], np.uint64(3))
    """
    return _rows(as_one(column))


def _rows(array: pa.Array) -> list[Rows]:
    if not is_list(array.type):
        offsets = np.arange(len(array) + 1, dtype=np.int64)
        return _parts(array, offsets, np.ones(len(array), np.int32))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    if array.null_count == 0 and len(array) and not _has_offsets(array.values.type):
        first = int(offsets[0])
        return [Rows.between(_words(array.values.slice(first, int(offsets[-1]) - first)), offsets)]
    lengths = np.diff(offsets).astype(np.int32)
    if array.null_count:
        lengths[pc.is_null(array).to_numpy(zero_copy_only=False)] = 0
    first = int(offsets[0]) if len(offsets) else 0
    last = int(offsets[-1]) if len(offsets) else 0
    return _parts(array.values.slice(first, last - first), offsets.astype(np.int64) - first, lengths)


def _parts(values: pa.Array, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> list[Rows]:
    """Rows of `values`: row r begins at `offsets[r]` and has `lengths[r]`, which is 0 where it is null."""
    kind, starts = values.type, offsets[:-1]
    if not _has_offsets(kind) or values.null_count or len(values) == 0:
        return [Rows(words=as_words(_words(values)), starts=starts, lengths=lengths)]
    is_large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    width = np.int64 if is_large else np.int32
    _, offset_buffer, data = values.buffers()
    assert offset_buffer is not None, "a non-empty array of texts has offsets"
    edges = np.frombuffer(offset_buffer, width, len(values) + 1, values.offset * np.dtype(width).itemsize)
    data_bytes = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    begins = edges[starts].astype(np.int64)
    num_bytes = (edges[starts + lengths] - begins).astype(np.int32)
    sizes = Rows(words=as_words(np.diff(edges)), starts=starts, lengths=lengths)
    return [sizes, Rows(words=data_bytes, starts=begins, lengths=num_bytes)]


def plain_lists(array: pa.Array) -> tuple[pa.Array, npt.NDArray[Any]] | None:
    """The values of lists that lie one after the other, and how many each has, without a copy; None for other arrays.

    A tenth of what Arrow's own functions take where the lists are few: those cost 15 us a call, whatever they do.

    >>> values, lengths = plain_lists(pa.array([[1], [2, 3], []]).slice(1))
    >>> values.to_pylist(), lengths.tolist()
    ([2, 3], [2, 0])
    """
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)) or array.null_count or not len(array):
        return None
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    first = int(offsets[0])
    return array.values.slice(first, int(offsets[-1]) - first), np.diff(offsets)


def as_one(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece, its lists with offsets."""
    array = _one_chunk(column)
    return array.cast(pa.large_list(array.type.value_type)) if pa.types.is_fixed_size_list(array.type) else array


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
    if _is_plain(kind) and values.null_count == 0:
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_null(kind):
        return np.zeros(len(values), np.uint8)
    return pc.dictionary_encode(values, null_encoding="encode").indices.to_numpy(zero_copy_only=False)


@cache  # asked of each column of each batch
def _is_plain(kind: pa.DataType) -> bool:
    """Whether values lie in memory as numbers of a fixed width."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


@cache
def _has_offsets(kind: pa.DataType) -> bool:
    """Whether values are texts whose bytes lie one after the other."""
    is_view = pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    return is_text(kind) and not pa.types.is_fixed_size_binary(kind) and not is_view
