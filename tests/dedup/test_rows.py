from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.dedup.rows import ALL_BITS, Engine, Rows, copy_rows, find_equal, find_equal_together
from lightning_intune.dedup.shifted import lay_out

KINDS = st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.float32, np.float64])
LISTS = st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=30)
ENGINES: list[Engine] = ["numba", "arrow"]


def packed(lists: list[list[Any]], kind: Any = np.int64) -> Rows:
    words = np.array([value for row in lists for value in row], kind)
    return Rows.packed(words, np.array([len(row) for row in lists], np.int32))


def numbered(lists: list[list[Any]]) -> tuple[list[int], list[int]]:
    """Inverse and first rows, by a dictionary."""
    seen: dict[bytes, int] = {}
    firsts: list[int] = []
    inverse: list[int] = []
    for number, row in enumerate(lists):
        code = bytes(str(row), "utf-8")
        if code not in seen:
            seen[code] = len(firsts)
            firsts.append(number)
        inverse.append(seen[code])
    return inverse, firsts


@given(lists=LISTS, kind=KINDS, bits=st.sampled_from([0, 1, 7, ALL_BITS]))
def test_equal_rows_get_one_number_whatever_their_hashes(lists: list[list[int]], kind: Any, bits: int) -> None:
    for engine in ENGINES:
        found = find_equal(packed(lists, kind), engine=engine, hash_mask=bits)
        assert (found.inverse.tolist(), found.firsts.tolist()) == numbered(lists)


def test_a_row_worked_by_hand() -> None:
    found = find_equal(packed([[1, 2], [1], [], [1, 2], []]))
    assert found.inverse.tolist() == [0, 1, 2, 0, 2]
    assert found.firsts.tolist() == [0, 1, 2]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_equal_by_their_bytes(engine: Engine) -> None:
    nan, other_nan = np.array([0x7FF8000000000000, 0x7FF8000000000001], np.uint64).view(np.float64)
    found = find_equal(packed([[0.0], [-0.0], [nan], [nan], [other_nan], [0.0]], np.float64), engine=engine)
    assert found.inverse.tolist() == [0, 1, 2, 2, 3, 0]


@given(lists=LISTS, starts_at=st.integers(0, 5))
def test_rows_that_do_not_begin_the_buffer_or_overlap_are_found_too(lists: list[list[int]], starts_at: int) -> None:
    rows = packed([[9] * starts_at, *lists])
    later = Rows(words=rows.words, starts=rows.starts[1:], lengths=rows.lengths[1:])
    for engine in ENGINES:
        assert find_equal(later, engine=engine).inverse.tolist() == numbered(lists)[0]
    windows = Rows(words=rows.words, starts=np.zeros(4, np.int64), lengths=np.array([0, 1, 0, 1], np.int32))
    if len(rows.words):
        for engine in ENGINES:
            assert find_equal(windows, engine=engine).inverse.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_s_rows_are_equal_where_all_its_features_are(engine: Engine) -> None:
    found = find_equal_together([packed([[1], [1], [1], [1]]), packed([[2], [3], [3], [2]])], engine=engine)
    assert found.inverse.tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"\[1, 2\] rows"):
        find_equal_together([packed([[1]]), packed([[1], [2]])], engine=engine)


def colliding(num_pairs: int) -> npt.NDArray[np.int64]:
    """2**num_pairs rows whose hashes are equal whatever the seed: a flip of bit 63 that a later word undoes.

    (h ^ w) * odd turns a flip of bit 63 into one of bit 63; h ^= h >> 29 adds one of bit 34; the next word of that
    chain, two places on, takes both out again.
    """
    rows: list[list[int]] = []
    for choice in range(2**num_pairs):
        row: list[int] = []
        for pair in range(num_pairs):
            flip = (choice >> pair) & 1
            row += [flip << 63, 5, flip * ((1 << 63) | (1 << 34)), 7]
        rows.append(row)
    return np.array(rows, np.uint64).view(np.int64)


def test_chosen_collisions_end_in_the_sort_and_give_the_same_numbers() -> None:
    from lightning_intune.dedup import kernels

    rows = Rows.table(colliding(9))
    inverse, firsts = np.empty(512, np.int64), np.empty(512, np.int64)
    args = rows.words, rows.starts, rows.lengths
    gave_up = kernels.find_by_hash(*args, np.uint64(12345), np.uint64(ALL_BITS), inverse, firsts)
    assert gave_up == -1
    assert find_equal(rows, engine="numba").inverse.tolist() == list(range(512))
    twice = Rows.table(np.concatenate([colliding(9), colliding(9)]))
    assert find_equal(twice, engine="numba").inverse.tolist() == [*range(512), *range(512)]


@given(lists=LISTS, chosen=st.lists(st.integers(0, 29), max_size=10))
def test_copied_rows_are_those_chosen(lists: list[list[int]], chosen: list[int]) -> None:
    chosen = [row for row in chosen if row < len(lists)]
    for engine in ENGINES:
        copied = copy_rows(packed(lists), np.array(chosen, np.int64), engine=engine)
        assert copied.tolist() == [value for row in chosen for value in lists[row]]


@given(lists=LISTS)
def test_rows_in_a_shared_buffer_read_as_before(lists: list[list[int]]) -> None:
    rows = packed(lists)
    ways = [lay_out(rows, engine=engine) for engine in ENGINES]
    assert [part.tolist() for part in ways[0]] == [part.tolist() for part in ways[1]]
    buffer, starts = ways[0]
    assert len(buffer) <= len(rows.words)
    for row, begin in zip(lists, starts.tolist(), strict=True):
        assert buffer[begin : begin + len(row)].tolist() == row


def test_a_history_that_moves_on_by_one_is_stored_once_at_either_end() -> None:
    clicks = list(range(100, 120))
    newest_last = [clicks[max(0, end - 8) : end] for end in range(1, 21)]
    newest_first = [row[::-1] for row in newest_last]
    for history in (newest_last, newest_first):
        assert len(lay_out(packed(history))[0]) == 20
