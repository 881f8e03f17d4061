"""Jagged rows on the host as NumPy sees them, and the search for equal ones: compiled, or by Arrow without numba."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.errors import ConfigError

Engine = Literal["auto", "numba", "arrow"]
Places = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# Drawn once per process, so that nobody can choose ids whose hashes meet.
_SEED = np.uint64(secrets.randbits(64))
ALL_BITS = 0xFFFF_FFFF_FFFF_FFFF


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """R rows of one feature: row r is `words[starts[r] : starts[r] + lengths[r]]`."""

    words: npt.NDArray[Any]
    """[N] of 1, 2, 4 or 8 bytes each; compared as bytes."""
    starts: Places
    lengths: Lengths

    @staticmethod
    def packed(words: npt.NDArray[Any], lengths: Lengths) -> Rows:
        """Rows that lie one after the other."""
        starts = np.cumsum(lengths, dtype=np.int64)
        starts -= lengths
        return Rows(words=as_words(words), starts=starts, lengths=lengths)

    @staticmethod
    def between(words: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> Rows:
        """Rows between the R + 1 `offsets`, counted from the first of them."""
        starts, lengths = np.empty(len(offsets) - 1, np.int64), np.empty(len(offsets) - 1, np.int32)
        kernels = compiled("auto")
        if kernels is not None:
            kernels.split_offsets(offsets, starts, lengths)
        else:
            np.subtract(offsets[:-1], offsets[0], out=starts, casting="unsafe")
            np.subtract(offsets[1:], offsets[:-1], out=lengths, casting="unsafe")
        return Rows(words=as_words(words), starts=starts, lengths=lengths)

    @staticmethod
    def table(codes: npt.NDArray[np.int64]) -> Rows:
        """Rows of equal lengths, [R, F]."""
        num_rows, width = codes.shape
        starts = np.arange(num_rows, dtype=np.int64) * width
        words = as_words(np.ascontiguousarray(codes).reshape(-1))
        return Rows(words=words, starts=starts, lengths=np.full(num_rows, width, np.int32))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The equal rows: `inverse` [R] numbers them by first appearance, `firsts` [U] holds where each appears first."""

    inverse: Places
    firsts: Places


def find_equal(rows: Rows, *, engine: Engine = "auto", hash_mask: int = ALL_BITS) -> Found:
    """Number equal rows. Both engines give the same numbers.

    `hash_mask` keeps only some bits of each hash (tests: 0 makes all collide). ConfigError for `numba` where that
    cannot be imported.

    >>> rows = Rows.packed(np.array([7, 8, 7, 8, 9]), np.array([2, 2, 0, 1], np.int32))
    >>> found = find_equal(rows)
    >>> found.inverse.tolist(), found.firsts.tolist()
    ([0, 0, 1, 2], [0, 2, 3])
    """
    kernels = compiled(engine)
    if kernels is None:
        return _find_by_arrow(rows)
    num_rows = len(rows.lengths)
    inverse, firsts = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    args = rows.words, rows.starts, rows.lengths
    count = kernels.find_by_hash(*args, _SEED, np.uint64(hash_mask), inverse, firsts)
    if count < 0:
        count = kernels.find_by_sort(*args, inverse, firsts)
    return Found(inverse=inverse, firsts=firsts[:count])


def find_equal_together(features: Sequence[Rows], *, engine: Engine = "auto") -> Found:
    """Number the rows in which all `features` are equal. ValueError where their row counts differ."""
    counts = {len(rows.lengths) for rows in features}
    if len(counts) != 1:
        raise ValueError(f"features of one group have {sorted(counts)} rows; they must have equally many")
    if len(features) == 1:
        return find_equal(features[0], engine=engine)
    kernels = compiled(engine)
    if kernels is None:
        return _combined(features, engine)
    # Within a session all of them stay: only rows that begin a run of equal ones need be searched.
    changed = np.zeros(counts.pop(), np.bool_)
    changed[:1] = True
    for rows in features:
        kernels.mark_changes(rows.words, rows.starts, rows.lengths, changed)
    heads = np.flatnonzero(changed)
    if len(heads) == len(changed):
        return _combined(features, engine)
    found = _combined([_some(rows, heads) for rows in features], engine)
    return Found(inverse=found.inverse[np.cumsum(changed) - 1], firsts=heads[found.firsts])


def _combined(features: Sequence[Rows], engine: Engine) -> Found:
    """The rows in which all features are equal: of each feature only those are searched that nothing yet tells apart.

    The longest first, since it tells most apart: then hardly a row of the others need be read.
    """
    longest_first = sorted(features, key=lambda rows: -int(rows.lengths.sum(dtype=np.int64)))
    found = find_equal(longest_first[0], engine=engine)
    first_of = found.firsts[found.inverse]
    for rows in longest_first[1:]:
        open_rows = np.flatnonzero(np.bincount(first_of, minlength=len(first_of))[first_of] > 1)
        if len(open_rows) == 0:
            break
        own = find_equal(_some(rows, open_rows), engine=engine)
        pairs = find_equal(Rows.table(np.stack([first_of[open_rows], own.inverse], axis=1)), engine=engine)
        first_of[open_rows] = open_rows[pairs.firsts[pairs.inverse]]
    is_first = first_of == np.arange(len(first_of))
    return Found(inverse=(np.cumsum(is_first) - 1)[first_of], firsts=np.flatnonzero(is_first))


def _some(rows: Rows, places: Places) -> Rows:
    return Rows(words=rows.words, starts=rows.starts[places], lengths=rows.lengths[places])


def copy_rows(
    rows: Rows, chosen: Places, *, engine: Engine = "auto", out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """The words of the rows `chosen`, one row after the other; into `out`, of just that many words, where given."""
    lengths = rows.lengths[chosen]
    if out is None:
        out = np.empty(int(lengths.sum(dtype=np.int64)), rows.words.dtype)
    kernels = compiled(engine)
    if kernels is not None:
        kernels.copy_rows(rows.words, rows.starts, rows.lengths, chosen, out)
        return out
    ends = np.cumsum(lengths, dtype=np.int64)
    place = np.repeat(rows.starts[chosen] - (ends - lengths), lengths)
    place += np.arange(len(place))
    return np.take(rows.words, place, out=out)


@cache
def has_numba() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


@cache
def _kernels() -> Any:
    return import_module("lightning_intune.dedup.kernels")


def compiled(engine: Engine) -> Any:
    """The module of kernels; None where Arrow is to do it. ConfigError where numba is asked for in vain."""
    if engine == "arrow" or (engine == "auto" and not has_numba()):
        return None
    if not has_numba():
        raise ConfigError(
            "dedup: engine='numba' needs numba, which is not installed. pip install 'lightning-intune[fast]', or use "
            "engine='arrow', which gives the same result slower."
        )
    return _kernels()


def _find_by_arrow(rows: Rows) -> Found:
    if len(rows.lengths) == 0:
        return Found(inverse=np.empty(0, np.int64), firsts=np.empty(0, np.int64))
    texts = pc.dictionary_encode(_as_binary(rows))
    inverse = texts.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    firsts = np.empty(len(texts.dictionary), np.int64)
    firsts[inverse[::-1]] = np.arange(len(inverse) - 1, -1, -1)  # of several writes the last, so the first row, stays
    return Found(inverse=inverse, firsts=firsts)


def _as_binary(rows: Rows) -> pa.Array:
    """Each row as one byte string; packed rows without a copy."""
    ends = rows.starts + rows.lengths
    is_packed = bool((rows.starts[1:] == ends[:-1]).all())
    words = rows.words if is_packed else copy_rows(rows, np.arange(len(rows.lengths)), engine="arrow")
    offsets = np.zeros(len(rows.lengths) + 1, np.int64)
    np.cumsum(rows.lengths, out=offsets[1:])
    if is_packed:
        offsets += rows.starts[0]
    offsets *= words.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(words))]
    return pa.Array.from_buffers(pa.large_binary(), len(rows.lengths), buffers)


def as_words(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory as unsigned words, so that equal means equal bytes."""
    return np.ascontiguousarray(values).view(_WORDS[values.dtype.itemsize])
