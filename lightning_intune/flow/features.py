"""Arrow columns into the arrays of a batch, one feature at a time, without a Python step per row.

NumPy and Arrow let go of the GIL in nearly all of it, so several threads of one stage work side by side.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import is_list, is_text
from lightning_intune.config import SparseFeature
from lightning_intune.flow.hashing import Words, hash_numbers, hash_texts, number_words, to_rows

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

MISSING_ROW = 0

_MAX_KEPT = 8  # dictionaries per feature: those of the row groups whose batches are being made
MAX_UNUSED = 4  # times as many distinct values as rows


def fill_floats(column: pa.ChunkedArray, out: Floats) -> None:
    """Write the column's numbers to `out` [B]; a null becomes NaN."""
    begin = 0
    for chunk in column.chunks:
        out[begin : begin + len(chunk)] = _numbers(_decoded(chunk), pa.float32())
        begin += len(chunk)


def flat_values(column: pa.ChunkedArray) -> tuple[list[pa.Array], Lengths | None]:
    """The values of a column of B rows, chunk by chunk, and how many each row has; None where that is one each."""
    if not is_list(column.type):
        return column.chunks, None
    lengths = np.empty(len(column), np.int32)
    begin = 0
    for chunk in column.chunks:
        counts = pc.fill_null(pc.list_value_length(chunk), 0)
        lengths[begin : begin + len(chunk)] = counts.to_numpy(zero_copy_only=False)
        begin += len(chunk)
    # `flatten` respects slices and leaves out what lies under null lists.
    return [chunk.flatten() for chunk in column.chunks], lengths


def value_words(values: pa.Array, seed: int) -> Words:
    """64 bits for each plain value, equal where values are, in new memory; a null has those of zero or of no text.

    Numbers are not mixed yet, so they spread badly by themselves.
    """
    if is_text(values.type):
        return hash_texts(_plain_text(values), seed)
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.uint64)
    return number_words(_integers(values), seed)


@final
class SparseEncoder:
    """A function from values [n] to embedding rows [n], as one feature says. Picklable, safe in several threads.

    Where the values are dictionary-encoded, each distinct one is encoded once; and as the batches of a row group
    share their dictionaries, the last few results are kept.
    """

    def __init__(self, feature: SparseFeature) -> None:
        self._feature = feature
        self._kept = KeptTables()

    def __call__(self, values: pa.Array) -> Rows:
        """The row of every value."""
        if isinstance(values, pa.DictionaryArray):
            return self._rows_by_dictionary(values)
        if self._feature.transform == "hash" and is_text(values.type):
            # Logs repeat their strings: finding the distinct ones costs less than hashing every one (Arrow, no GIL).
            distinct = pc.dictionary_encode(_plain_text(values))
            return _look_up(distinct, self._table(distinct.dictionary))
        return _encode(values, self._feature)

    def _rows_by_dictionary(self, values: pa.DictionaryArray) -> Rows:
        indices, dictionary = values.indices, values.dictionary
        if len(dictionary) > MAX_UNUSED * (len(indices) + 1024):
            # A thin slice of a big file: leave the words it does not use alone, and do not keep them alive.
            used = pc.unique(pc.drop_null(indices))
            values = pa.DictionaryArray.from_arrays(pc.index_in(indices, used), dictionary.take(used))
            return _look_up(values, self._table(values.dictionary))
        return _look_up(values, self._kept.get(dictionary, self._table))

    def _table(self, dictionary: pa.Array) -> Rows:
        """The row of each distinct value, and last that of a missing one."""
        table = np.empty(len(dictionary) + 1, np.int64)
        table[:-1] = _encode(dictionary, self._feature)
        table[-1] = MISSING_ROW
        return table


@final
class KeptTables:
    """The tables of the dictionaries seen last, by where these lie in memory. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Each entry holds its dictionary too, so that no other can come to lie at its address.
        self._by_address: OrderedDict[tuple[int, ...], tuple[pa.Array, Rows]] = OrderedDict()

    def get(self, dictionary: pa.Array, make: Callable[[pa.Array], Rows]) -> Rows:
        buffers = (0 if buffer is None else buffer.address for buffer in dictionary.buffers())
        key = (dictionary.offset, len(dictionary), *buffers)
        with self._lock:
            entry = self._by_address.get(key)
        if entry is not None:
            return entry[1]
        table = make(dictionary)
        with self._lock:
            self._by_address[key] = (dictionary, table)
            if len(self._by_address) > _MAX_KEPT:
                self._by_address.popitem(last=False)
        return table

    def __reduce__(self) -> tuple[type[KeptTables], tuple[()]]:
        return KeptTables, ()


def _look_up(values: pa.DictionaryArray, table: Rows) -> Rows:
    return table[places_of(values)]


def places_of(values: pa.DictionaryArray) -> npt.NDArray[Any]:
    """Each value's place in the dictionary; a null's is one behind its end."""
    indices = values.indices
    if indices.null_count:
        indices = pc.fill_null(pc.cast(indices, pa.int64()), len(values.dictionary))
    return indices.to_numpy(zero_copy_only=False)


def clamped(values: pa.Array, clamp: Sequence[int] | None) -> pa.Array:
    """Integers beyond `clamp` (low, high) as the nearer of them; nulls stay.

    >>> clamped(pa.array([-5, None, 7, 300], pa.int16()), (0, 255)).to_pylist()
    [0, None, 7, 255]
    """
    if clamp is None or pa.types.is_null(values.type):
        return values
    wide = (
        values
        if pa.types.is_uint64(values.type)
        else pc.cast(pc.cast(values, pa.uint8()) if pa.types.is_boolean(values.type) else values, pa.int64())
    )
    info = np.iinfo(np.uint64 if pa.types.is_uint64(wide.type) else np.int64)
    low, high = (pa.scalar(min(max(int(bound), info.min), info.max), wide.type) for bound in clamp)
    raised = pc.max_element_wise(wide, low, skip_nulls=False)
    return pc.min_element_wise(raised, high, skip_nulls=False)


def _encode(values: pa.Array, feature: SparseFeature) -> Rows:
    """The row of every value, whatever it repeats."""
    values = clamped(values, feature.clamp)
    if pa.types.is_null(values.type):
        return np.full(len(values), MISSING_ROW, np.int64)
    rows = _ENCODERS[feature.transform](values, feature)
    if values.null_count:
        rows[pc.is_null(values).to_numpy(zero_copy_only=False)] = MISSING_ROW
    return rows


def _hash(values: pa.Array, feature: SparseFeature) -> Rows:
    if is_text(values.type):
        hashes = hash_texts(_plain_text(values), feature.seed)
    else:
        hashes = hash_numbers(_integers(values), feature.seed)
    rows = to_rows(hashes, feature.num_embeddings - 1)
    rows += 1
    return rows


def _id(values: pa.Array, feature: SparseFeature) -> Rows:
    rows = _integers(values) + 1
    # As unsigned, negative ids are the largest: one comparison finds all that are unseen.
    rows[rows.view(np.uint64) >= np.uint64(feature.num_embeddings)] = MISSING_ROW
    return rows


def _bucket(values: pa.Array, feature: SparseFeature) -> Rows:
    numbers = _numbers(values, pa.float64())
    rows = 1 + np.searchsorted(np.asarray(feature.boundaries, np.float64), numbers, side="right")
    rows[np.isnan(numbers)] = MISSING_ROW
    return rows


_ENCODERS: dict[str, Callable[[pa.Array, SparseFeature], Rows]] = {"hash": _hash, "id": _id, "bucket": _bucket}


def _numbers(values: pa.Array, kind: pa.DataType) -> npt.NDArray[Any]:
    """As floats of `kind`, null as NaN; digits a float cannot hold are rounded away."""
    floats = values if values.type == kind else pc.cast(values, kind, safe=False)
    return floats.to_numpy(zero_copy_only=False)


def _integers(values: pa.Array) -> Rows:
    """As int64, null as 0; an unsigned number beyond 2**63 wraps to a negative one."""
    if pa.types.is_boolean(values.type):
        values = pc.cast(values, pa.uint8())
    if values.null_count:
        values = pc.fill_null(values, 0)
    return values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if isinstance(values, pa.DictionaryArray) else values


def _plain_text(values: pa.Array) -> pa.Array:
    """Views and fixed widths as plain bytes, which every kernel here takes."""
    types = pa.types
    odd = types.is_string_view(values.type) or types.is_binary_view(values.type)
    return values.cast(pa.binary()) if odd or types.is_fixed_size_binary(values.type) else values
