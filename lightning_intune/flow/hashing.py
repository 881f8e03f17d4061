"""A hash of whole columns that is the same in every process, on every machine and in every release.

Python's `hash` is salted per process, Arrow offers no hash of values, and a hash per string from Python costs
microseconds a row. Here NumPy works on 8-byte words of the Arrow buffers. Each word is mixed with the key of its
place by SplitMix64's finaliser (Steele, Lea & Flood 2014; constants by Stafford, "Mix13"), the words of a value are
summed, and the sum is mixed once more with the length. It spreads well and is not meant to resist attackers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD_BYTES = 8
# The 8 - k low bytes of a little-endian word set: how a value's last word forgets what follows it.
_KEEP = np.array([(1 << (8 * kept)) - 1 for kept in range(_WORD_BYTES + 1)], dtype=np.uint64)


def hash_numbers(values: npt.NDArray[np.integer[Any]], seed: int) -> Words:
    """One 64-bit hash per whole number; equal numbers of any integer width hash alike.

    >>> [hex(h) for h in hash_numbers(np.array([0, 1]), seed=0)]
    ['0x0', '0x5692161d100b05e5']
    """
    return _mix(number_words(values, seed))


def number_words(values: npt.NDArray[np.integer[Any]], seed: int) -> Words:
    """What `hash_numbers` mixes: 64 bits of each whole number and the seed, in new memory."""
    return values.astype(np.int64, copy=False).view(np.uint64) + _key(seed)


def hash_texts(values: pa.Array, seed: int) -> Words:
    """One 64-bit hash per string or byte string; a null hashes as the empty one. Text hashes as its UTF-8.

    >>> hash_texts(pa.array(["a", "b", "a"]), seed=0)[[0, 2]].tolist() == hash_texts(pa.array([b"a"] * 2), 0).tolist()
    True
    """
    if len(values) == 0:
        return np.empty(0, np.uint64)
    starts, num_bytes, words_at = _layout(values)
    num_words = np.maximum(1, -(-num_bytes // _WORD_BYTES))
    first = np.cumsum(num_words) - num_words  # each value's first word among all words
    place = np.arange(int(num_words.sum())) - np.repeat(first, num_words)
    left = np.repeat(num_bytes, num_words) - place * _WORD_BYTES
    words = words_at[np.repeat(starts, num_words) + place * _WORD_BYTES] & _KEEP[np.minimum(left, _WORD_BYTES)]
    mixed = _mix(words + _mix((place + 1).view(np.uint64) * _GOLDEN + _key(seed)))
    return _mix(np.add.reduceat(mixed, first) + num_bytes.view(np.uint64) * _GOLDEN)


def combine(left: Words, right: Words) -> None:
    """Set `left` to one hash of each pair, in which the order counts."""
    left *= _GOLDEN
    left += right
    _mix(left)


def to_rows(hashes: Words, num_rows: int) -> npt.NDArray[np.int64]:
    """Each hash modulo `num_rows`, as int64, in the memory of `hashes`."""
    # Five times as fast as `%`: NumPy divides by a scalar with SIMD, but takes remainders one by one.
    divisor = np.uint64(num_rows)
    whole = hashes // divisor
    whole *= divisor
    hashes -= whole
    return hashes.view(np.int64)


def _mix(words: Words) -> Words:
    """The finaliser, in the memory of `words`: fresh pages cost more than the arithmetic."""
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= _MIX_1
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= _MIX_2
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words


def _key(seed: int) -> np.uint64:
    return np.uint64(seed * int(_GOLDEN) & 0xFFFF_FFFF_FFFF_FFFF)


def _layout(values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Words]:
    """Per value its first byte and its byte count; and the 8-byte word at *every* byte of the buffer."""
    if not (pa.types.is_large_binary(values.type) or pa.types.is_large_string(values.type)):
        values = values.cast(pa.large_binary())
    _, offset_buffer, data = values.buffers()
    assert offset_buffer is not None, "a non-empty variable-length array has offsets"
    offsets = np.frombuffer(offset_buffer, np.int64, len(values) + 1, values.offset * 8)
    begin, end = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(end - begin + _WORD_BYTES, np.uint8)  # a buffer need not go on to a whole last word
    if data is not None:
        padded[: end - begin] = np.frombuffer(data, np.uint8, end - begin, begin)
    words_at = np.ndarray((end - begin + 1,), "<u8", padded.data, strides=(1,))
    return offsets[:-1] - begin, np.diff(offsets), words_at
