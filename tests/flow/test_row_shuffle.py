"""Rows drawn from several row groups at once."""

from __future__ import annotations

import pickle
from itertools import islice, pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.flow import (
    IterableSource,
    Rebatch,
    Repeat,
    RowShuffle,
)


def tables(*sizes: int) -> IterableSource[pa.Table]:
    """Row groups of the given sizes, whose rows are numbered through."""
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    return IterableSource(
        [
            pa.table({"row": list(range(b, b + n)), "group": [i] * n})
            for i, (b, n) in enumerate(zip(begins, sizes, strict=True))
        ]
    )


def rows(batches: Any) -> list[list[int]]:
    return [batch["row"].to_pylist() for batch in batches]


@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    batch_size=st.integers(1, 25),
    num_tables=st.integers(1, 5),
    seed=st.integers(0, 3),
    cut=st.integers(0, 40),
)
def test_shuffled_rows_come_once_in_full_batches_and_resume_anywhere(
    sizes: list[int], batch_size: int, num_tables: int, seed: int, cut: int
) -> None:
    def make() -> RowShuffle:
        return RowShuffle(tables(*sizes), batch_size, num_tables=num_tables, seed=seed)

    whole = rows(make())
    assert sorted(row for batch in whole for row in batch) == list(range(sum(sizes)))
    assert all(len(batch) == batch_size for batch in whole[:-1])
    first, second = make(), make()
    head = rows(islice(first, cut))
    second.reset(first.state_dict())
    assert head + rows(second) == whole


def test_a_row_group_used_up_before_an_older_one_is_not_read_again_by_a_resume() -> None:
    node, other = (RowShuffle(tables(2, 1), 2, num_tables=2) for _ in range(2))
    assert rows(islice(node, 1)) == [[0, 2]]
    other.reset(node.state_dict())
    assert rows(other) == [[1]]


def test_a_batch_has_rows_of_all_open_row_groups_and_an_epoch_reads_them_in_turn() -> None:
    sizes = [1000] * 32
    batches = [batch["group"].to_pylist() for batch in RowShuffle(tables(*sizes), 100, num_tables=8)]
    assert min(len(set(batch)) for batch in batches[:240]) >= 7  # 8 are open, of which one may be nearly used up
    # While 8 groups are open, group g cannot be in a batch before the (g - 7)th is used up.
    first_seen = [next(i for i, batch in enumerate(batches) if group in batch) for group in range(32)]
    assert first_seen == sorted(first_seen)
    # They run out one after another: from the third round on, no two new ones are needed within three batches.
    gaps = [after - before for before, after in pairwise(first_seen[16:])]
    assert min(gaps) >= 4


def test_it_cuts_slices_and_copies_no_row() -> None:
    table = pa.table({"row": list(range(1000))})
    source = IterableSource([table])
    begin = table["row"].chunk(0).buffers()[1].address
    for batch in RowShuffle(source, 100, num_tables=4):
        assert all(begin <= chunk.buffers()[1].address < begin + 8000 for chunk in batch["row"].chunks)


def test_with_drop_last_a_short_last_batch_is_left_out() -> None:
    assert [len(batch) for batch in rows(RowShuffle(tables(7, 8), 4, num_tables=2, drop_last=True))] == [4, 4, 4]
    assert [len(batch) for batch in rows(RowShuffle(tables(7, 8), 4, num_tables=2))] == [4, 4, 4, 3]


def test_row_state_does_not_grow_with_position_nor_with_the_rows() -> None:
    sizes = set()
    for size, position in ((60, 10), (60, 200), (3000, 10), (3000, 200)):
        node = RowShuffle(Repeat(tables(*[size] * 6)), 50, num_tables=4)
        for _ in islice(node, position):
            pass
        sizes.add(len(pickle.dumps(node.state_dict())))
    assert max(sizes) < 400


def test_rows_of_one_open_table_come_as_rebatch_would_cut_them() -> None:
    assert rows(RowShuffle(tables(5, 7, 3), 4, num_tables=1)) == rows(Rebatch(tables(5, 7, 3), 4))


@pytest.mark.parametrize("num_taken", [0, 5])
def test_a_copy_begins_anew_before_and_while_it_runs(num_taken: int) -> None:
    node = RowShuffle(tables(9, 9, 9), 2, num_tables=2)
    list(islice(node, num_taken))
    assert rows(pickle.loads(pickle.dumps(node))) == rows(RowShuffle(tables(9, 9, 9), 2, num_tables=2))
