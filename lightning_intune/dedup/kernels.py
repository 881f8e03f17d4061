"""Equal rows of jagged data, found and copied by compiled code that lets go of the GIL. Needs numba.

A row is first compared with the one before it: in data clustered by session that is nearly always enough. Else it is
hashed, and what has its hash is compared word for word: a hash alone is never trusted. Where probe chains grow, since
someone chose the ids, the rows are sorted instead, which no choice of ids can make quadratic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

Words = npt.NDArray[np.unsignedinteger[Any]]
Places = npt.NDArray[np.int64]

_memcmp = types.ExternalFunction("memcmp", types.intc(types.uintp, types.uintp, types.uintp))
_memcpy = types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
_PROBES_PER_ROW = 8
_SPARE_PROBES = 1024


@njit(nogil=True, cache=True, inline="always")
def _same(words: Words, a: Any, b: Any, length: Any) -> Any:
    # The C library compares 2.4 times as fast as a loop that numba vectorises; and it is there in every process.
    begin, width = words.ctypes.data, words.itemsize
    return length == 0 or _memcmp(begin + a * width, begin + b * width, length * width) == 0


@njit(nogil=True, cache=True, inline="always")
def _hash(words: Words, begin: int, length: int, seed: np.uint64) -> np.uint64:
    # Two chains side by side hide the multiplier's latency.
    left = seed ^ (np.uint64(length) * np.uint64(0x9E3779B97F4A7C15))
    right = ~seed
    end = begin + length
    k = begin
    while k + 1 < end:
        left = (left ^ np.uint64(words[k])) * np.uint64(0xBF58476D1CE4E5B9)
        right = (right ^ np.uint64(words[k + 1])) * np.uint64(0x94D049BB133111EB)
        left ^= left >> np.uint64(29)
        right ^= right >> np.uint64(31)
        k += 2
    if k < end:
        left = (left ^ np.uint64(words[k])) * np.uint64(0xBF58476D1CE4E5B9)
        left ^= left >> np.uint64(29)
    mixed = (left ^ (right * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


@njit(nogil=True, cache=True)
def find_by_hash(
    words: Words,
    starts: Places,
    lengths: npt.NDArray[np.int32],
    seed: np.uint64,
    hash_mask: np.uint64,
    inverse: Places,
    firsts: Places,
) -> int:
    """Fill `inverse` [B] and the first U of `firsts` [B], and return U; or -1 where probe chains grow too long."""
    num_rows = len(lengths)
    size = 16
    while size < 2 * num_rows:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, np.int32)
    hashes = np.empty(num_rows, np.uint64)
    probes_left = _PROBES_PER_ROW * num_rows + _SPARE_PROBES
    count = 0
    for row in range(num_rows):
        begin, length = starts[row], lengths[row]
        if row > 0 and length == lengths[row - 1] and _same(words, begin, starts[row - 1], length):
            inverse[row] = inverse[row - 1]
            continue
        code = _hash(words, begin, length, seed) & hash_mask
        slot = code & mask
        while True:
            found = table[slot]
            if found < 0:
                table[slot], hashes[count], firsts[count] = count, code, row
                inverse[row] = count
                count += 1
                break
            first = firsts[found]
            if hashes[found] == code and lengths[first] == length and _same(words, starts[first], begin, length):
                inverse[row] = found
                break
            probes_left -= 1
            if probes_left < 0:
                return -1
            slot = (slot + np.uint64(1)) & mask
    return count


@njit(nogil=True, cache=True)
def mark_changes(words: Words, starts: Places, lengths: npt.NDArray[np.int32], changed: npt.NDArray[np.bool_]) -> None:
    """Set `changed` [B] where a row is not the one before it; rows that are marked already are not looked at."""
    for row in range(1, len(lengths)):
        if not changed[row]:
            length = lengths[row]
            same = length == lengths[row - 1] and _same(words, starts[row], starts[row - 1], length)
            changed[row] = not same


@njit(nogil=True, cache=True)
def split_offsets(offsets: npt.NDArray[Any], starts: Places, lengths: npt.NDArray[np.int32]) -> None:
    """From the R + 1 edges of lists to where each begins, counted from the first edge, and how long it is."""
    for row in range(len(lengths)):
        starts[row] = offsets[row] - offsets[0]
        lengths[row] = offsets[row + 1] - offsets[row]


@njit(nogil=True, cache=True)
def _after(words: Words, starts: Places, lengths: npt.NDArray[np.int32], a: Any, b: Any) -> Any:
    """Whether row `a` sorts after row `b`: by length, then word by word."""
    if lengths[a] != lengths[b]:
        return lengths[a] > lengths[b]
    for k in range(lengths[a]):
        left, right = words[starts[a] + k], words[starts[b] + k]
        if left != right:
            return left > right
    return False


@njit(nogil=True, cache=True)
def find_by_sort(words: Words, starts: Places, lengths: npt.NDArray[np.int32], inverse: Places, firsts: Places) -> int:
    """What `find_by_hash` finds, in O(B log B) comparisons whatever the data."""
    num_rows = len(lengths)
    order, spare = np.arange(num_rows), np.empty(num_rows, np.int64)
    width = 1
    while width < num_rows:  # a stable merge sort: of equal rows the first stays first
        for low in range(0, num_rows, 2 * width):
            middle, high = min(low + width, num_rows), min(low + 2 * width, num_rows)
            i, j = low, middle
            for k in range(low, high):
                if i < middle and (j >= high or not _after(words, starts, lengths, order[i], order[j])):
                    spare[k] = order[i]
                    i += 1
                else:
                    spare[k] = order[j]
                    j += 1
        order, spare = spare, order
        width *= 2
    first_of = np.empty(num_rows, np.int64)
    for k in range(num_rows):
        is_same = k > 0 and not _after(words, starts, lengths, order[k], order[k - 1])
        first_of[order[k]] = first_of[order[k - 1]] if is_same else order[k]
    count = 0
    for row in range(num_rows):
        if first_of[row] == row:
            firsts[count], inverse[row] = row, count
            count += 1
        else:
            inverse[row] = inverse[first_of[row]]
    return count


@njit(nogil=True, cache=True)
def copy_rows(words: Words, starts: Places, lengths: npt.NDArray[np.int32], rows: Places, out: Words) -> None:
    """Write those rows to `out`, one after the other."""
    source, width, target = words.ctypes.data, words.itemsize, out.ctypes.data
    for row in rows:
        num_bytes = lengths[row] * width
        _memcpy(target, source + starts[row] * width, num_bytes)
        target += num_bytes


@njit(nogil=True, cache=True)
def read_rows(words: Words, starts: Places, lengths: npt.NDArray[np.int32]) -> int:
    """Read every word once, row by row, and keep their exclusive or: what no search of them can be faster than."""
    total = np.uint64(0)
    for row in range(len(lengths)):
        begin = starts[row]
        for k in range(lengths[row]):
            total ^= np.uint64(words[begin + k])
    return int(total >> np.uint64(1))


@njit(nogil=True, cache=True)
def share_shifted_rows(
    words: Words, starts: Places, lengths: npt.NDArray[np.int32], newest_last: bool, out: Words, out_starts: Places
) -> int:
    """Lay rows so that one which continues its neighbour's list adds its new values only; the words laid out.

    Rows are visited in order if new values come last, in reverse if they come first, so that a continuation always
    appends. `out` holds as many words as all rows; `out_starts` [R] gets each row's place.
    """
    num_rows = len(lengths)
    end, before = 0, -1
    for k in range(num_rows):
        row = k if newest_last else num_rows - 1 - k
        begin, length = starts[row], lengths[row]
        kept = 0
        if before >= 0:
            last, last_length = starts[before], lengths[before]
            for shift in range(max(0, last_length - length), last_length):
                overlap = last_length - shift
                if _same(words, last + shift, begin, overlap):
                    kept = overlap
                    break
        out_starts[row] = end - kept
        for place in range(kept, length):
            out[end] = words[begin + place]
            end += 1
        before = row
    return end
