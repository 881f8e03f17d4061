"""A length that every rank knows before the first step, and that the epoch keeps to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticLoader, ElasticMapper, EqualSteps, IterableSource, ParquetSource, Rebatch
from tests.flow.ranks import COUNTS, MODES, Line, Ranks, equal_steps, expected, on_all_ranks, source

SLACK = st.integers(0, 7)


def told(counts: list[int], mode: str, slack: int) -> list[int]:
    """What each rank surely gives (drop), or gives at most (pad), `slack` away from what it has."""
    return [max(0, count - slack) if mode == "drop" else count + slack for count in counts]


@settings(max_examples=60)
@given(counts=COUNTS, mode=MODES, window=st.integers(1, 9), slack=SLACK, asks=st.booleans(), own=st.booleans())
def test_the_epoch_has_the_length_that_was_told(
    counts: list[int], mode: str, window: int, slack: int, asks: bool, own: bool
) -> None:
    """Twice over: the second epoch is as long as the first. With `asks`, `len` is called before anything else."""
    if mode == "pad":
        counts = [max(1, count) for count in counts]
    bounds = told(counts, mode, slack)
    length = min(bounds) if mode == "drop" else max(bounds)

    def work(line: Line) -> Any:
        node = equal_steps(line, counts, mode, window, bounds[line.rank] if own else bounds)
        loader = ElasticLoader(node, num_batches=node.__len__)
        asked = len(loader) if asks else None
        out = [list(loader), list(loader)]
        return asked or len(loader), out

    wanted = [expected(rank, count, length) for rank, count in enumerate(counts)]
    assert on_all_ranks(len(counts), work) == [(length, [out, out]) for out in wanted]


@settings(max_examples=60)
@given(
    counts=COUNTS, mode=MODES, slack=SLACK, cut=st.integers(0, 40), again=st.integers(0, 9), window=st.integers(1, 9)
)
def test_a_resumed_epoch_keeps_to_its_length(
    counts: list[int], mode: str, slack: int, cut: int, again: int, window: int
) -> None:
    """From rank 0's state, cut twice, in the padding too."""
    if mode == "pad":
        counts = [max(1, count) for count in counts]
    bounds = told(counts, mode, slack)
    length = min(bounds) if mode == "drop" else max(bounds)
    outs: list[list[str]] = [[] for _ in counts]
    state = None
    for number in (cut, again, None):

        def run(line: Line, number: Any = number, state: Any = state) -> Any:
            node = equal_steps(line, counts, mode, window, bounds)
            node.reset(state)
            out = list(islice(node, number))
            saved = node.state_dict()
            node.shutdown()
            return out, saved, len(node)

        results = on_all_ranks(len(counts), run)
        for out, (part, _, known) in zip(outs, results, strict=True):
            out += part
            assert known == length
        state = results[0][1]
    assert outs == [expected(rank, count, length) for rank, count in enumerate(counts)]


@given(count=st.integers(1, 20), mode=MODES, slack=SLACK, cut=st.integers(0, 30))
def test_one_rank_alone_keeps_to_its_length_and_resumes_in_its_padding(
    count: int, mode: Any, slack: int, cut: int
) -> None:
    (bound,) = told([count], mode, slack)

    def make() -> EqualSteps[str]:
        return EqualSteps(source(0, count), mode=mode, num_items=bound, pad=lambda s: f"pad of {s}")

    node, other = make(), make()
    assert len(node) == bound
    head = list(islice(node, cut))
    other.reset(node.state_dict())
    assert head + list(other) == expected(0, count, bound)


def test_the_ranks_ask_each_other_for_the_length_once_and_not_where_it_is_told_for_all() -> None:
    def gathers(num_items: Any) -> int:
        ranks: list[Ranks] = []

        def work(line: Line) -> None:
            ranks.append(line.ranks)
            node = equal_steps(line, [4, 5], "drop", 8, [4, 5][line.rank] if num_items is None else num_items)
            for _ in range(3):
                assert len(node) == 4

        assert on_all_ranks(2, work) == [None, None]
        return ranks[0].num_gathers

    assert gathers(None) == 1
    assert gathers([4, 5]) == 0


@pytest.mark.parametrize(
    ("mode", "num_items", "steps", "message"),
    [
        ("drop", [9, 9], 7, "rank 1 has ended before its num_items"),
        ("pad", [6, 6], 6, "rank 0 has more items than its num_items"),
    ],
)
def test_a_source_that_does_not_keep_to_its_length_ends_all_ranks_alike_and_is_named(
    mode: Any, num_items: list[int], steps: int, message: str
) -> None:
    def work(line: Line) -> Any:
        node, out = equal_steps(line, [9, 7], mode, 4, num_items), list[str]()
        with pytest.raises(RuntimeError, match=message):
            out.extend(node)
        return len(out)

    assert on_all_ranks(2, work) == [steps, steps]


@pytest.mark.parametrize(("mode", "num_items", "steps"), [("drop", 6, 5), ("pad", 4, 4)])
def test_nor_may_one_rank_alone(mode: Any, num_items: int, steps: int) -> None:
    node, out = EqualSteps(source(0, 5), mode=mode, num_items=num_items, pad=str), list[str]()
    with pytest.raises(RuntimeError, match="rank 0 has"):
        out.extend(node)
    assert len(out) == steps


def test_a_rank_without_any_item_cannot_be_padded_to_a_length() -> None:
    errors = on_all_ranks(2, lambda line: list(equal_steps(line, [3, 0], "pad", 4, [3, 3])))
    assert all("rank 1 has no item at all" in str(error) for error in errors)
    with pytest.raises(RuntimeError, match="rank 0 has no item at all"):
        list(EqualSteps(source(0, 0), mode="pad", num_items=2))


def test_an_epoch_of_no_steps_begins_no_window() -> None:
    assert on_all_ranks(2, lambda line: list(equal_steps(line, [3, 0], "drop", 4, [3, 0]))) == [[], []]


def test_without_num_items_there_is_no_length() -> None:
    with pytest.raises(TypeError, match="no num_items"):
        len(EqualSteps(source(0, 3)))


@pytest.mark.parametrize("num_items", [-1, 2.5, [], [3, "4"]])
def test_a_num_items_that_is_no_number_is_refused(num_items: Any) -> None:
    with pytest.raises(ConfigError, match="is no number of items"):
        EqualSteps(source(0, 3), num_items=num_items)


def test_a_list_for_other_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 numbers for 1 ranks"):
        len(EqualSteps(source(0, 3), num_items=[3, 3, 3]))


@pytest.mark.parametrize("shuffle", [False, True])
def test_parquet_on_two_ranks_loses_no_row_and_has_one_length_in_every_epoch(tmp_path: Path, shuffle: bool) -> None:
    """Row groups of 7, 3, 5 and 1 rows, 16 in all."""
    writer = None
    for first, size in ((0, 7), (7, 3), (10, 5), (15, 1)):
        table = pa.table({"n": range(first, first + size)})
        writer = writer or pq.ParquetWriter(tmp_path / "a.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()

    def work(line: Line) -> Any:
        parquet = ParquetSource(tmp_path, shuffle=shuffle, rank=line.rank, world_size=2)
        batches = Rebatch(ElasticMapper(parquet, parquet.reader(), 1), 2)
        node = EqualSteps(
            batches,
            mode="pad",
            num_items=[-(-parquet.max_rank_rows // 2)] * 2,
            pad=lambda table: table.slice(0, 0),
            communicator=line,
        )
        with ElasticLoader(node, num_batches=node.__len__) as loader:
            return len(loader), [[table["n"].to_pylist() for table in loader] for _ in range(4)]

    (length, first), (other, second) = on_all_ranks(2, work)
    assert length == other == 4
    assert {len(epoch) for epoch in [*first, *second]} == {length}
    for epoch in range(4):
        rows = [n for batches in (first[epoch], second[epoch]) for batch in batches for n in batch]
        assert sorted(rows) == list(range(16))


def test_in_drop_mode_the_length_ends_an_endless_source() -> None:
    def work(line: Line) -> Any:
        endless: Any = IterableSource(range(10**9))
        return list(EqualSteps(endless, num_items=5 + line.rank, communicator=line))

    assert on_all_ranks(2, work) == [list(range(5))] * 2
