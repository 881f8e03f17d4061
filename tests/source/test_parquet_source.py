"""Which row groups a rank reads, in which order, and where it stands: as laws over uneven files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, ParquetSource, Rebatch
from tests.source.files import write_folder

FILES = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=4).filter(
    lambda files: any(map(sum, files))
)
EVEN = [[4, 4, 4], [4, 4, 4]]


@contextmanager
def folder(files: list[list[int]]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        write_folder(Path(path), files)
        yield Path(path)


def numbers(source: ParquetSource) -> list[int]:
    read = source.reader()
    return [n for row_group in source for n in read(row_group)["n"].to_pylist()]


def fresh(source: ParquetSource, epoch: int) -> ParquetSource:
    source.set_epoch(epoch)
    source.reset()
    return source


# ---- what a rank reads ----


def test_without_shuffle_the_rows_come_as_they_lie_in_the_files() -> None:
    with folder([[2, 3], [1]]) as path:
        assert numbers(ParquetSource(path)) == [0, 1, 2, 3, 4, 5]


@settings(max_examples=40)
@given(
    files=FILES, world_size=st.integers(1, 5), shuffle=st.booleans(), epoch=st.integers(0, 3), seed=st.integers(0, 9)
)
def test_every_row_is_on_exactly_one_rank(
    files: list[list[int]], world_size: int, shuffle: bool, epoch: int, seed: int
) -> None:
    with folder(files) as path:
        ranks = [
            fresh(ParquetSource(path, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size), epoch)
            for rank in range(world_size)
        ]
        promised = [(len(source), source.num_rank_rows) for source in ranks]
        shares = [list(source) for source in ranks]
        read = [
            [row for group in share for row in source.reader()(group)["n"].to_pylist()]
            for source, share in zip(ranks, shares, strict=True)
        ]
        counts = [len(rows) for rows in read]
        assert promised == [(len(share), count) for share, count in zip(shares, counts, strict=True)]
        assert sorted(row for rows in read for row in rows) == list(range(sum(map(sum, files))))
        assert min(counts) == ranks[0].min_rank_rows
        assert max(counts) == ranks[0].max_rank_rows <= min(counts) + 1
        assert sum(map(len, shares)) < ranks[0].num_row_groups + world_size  # hardly anything is read twice


def test_uneven_row_groups_go_to_the_rank_with_the_fewest_rows_and_the_last_is_shared() -> None:
    # By hand: 9 to rank 0, 1 to rank 1, then 2 and 5 to rank 1 (1, 3 < 9), and 4 again to rank 1 (8 < 9). Of 21 rows
    # 11 are rank 0's: rank 1, with 12, gives it two of its last four, and it has 10 left.
    with folder([[9, 1, 2, 5, 4]]) as path:
        shares = [
            [(g.index, g.start, g.stop) for g in ParquetSource(path, rank=rank, world_size=2)] for rank in range(2)
        ]
    assert shares == [[(0, 0, None), (4, 2, None)], [(1, 0, None), (2, 0, None), (3, 0, None), (4, 0, 2)]]


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_that_share_a_row_group_filter_its_rows_once(shuffle: bool) -> None:
    with folder([[10]]) as path:
        rows = [
            row
            for rank in range(3)
            for source in [ParquetSource(path, shuffle=shuffle, rank=rank, world_size=3, filters=[("n", ">", 2)])]
            for group in source
            for row in source.reader()(group)["n"].to_pylist()
        ]
    assert sorted(rows) == [3, 4, 5, 6, 7, 8, 9]


def test_even_row_groups_are_dealt_out_in_turn() -> None:
    with folder(EVEN) as path:
        assert [g.index for g in ParquetSource(path, rank=1, world_size=3)] == [1, 4]


# ---- order ----


def test_a_seed_and_an_epoch_make_one_order_and_others_make_others() -> None:
    with folder([[1] * 30]) as path:
        orders = {
            (seed, epoch): numbers(fresh(ParquetSource(path, shuffle=True, seed=seed), epoch))
            for seed in range(2)
            for epoch in range(2)
        }
        assert len({tuple(order) for order in orders.values()}) == 4
        assert all(sorted(order) == list(range(30)) for order in orders.values())
        assert numbers(fresh(ParquetSource(path, shuffle=True, seed=1), 1)) == orders[1, 1]


def test_rows_within_a_row_group_are_shuffled_by_descriptor_not_by_reader() -> None:
    with folder([[20, 20]]) as path:
        source = ParquetSource(path, shuffle=True, seed=3)
        first = {g.index: source.reader()(g)["n"].to_pylist() for g in fresh(source, 0)}
        again = {g.index: source.reader()(g)["n"].to_pylist() for g in fresh(source, 0)}
        later = {g.index: source.reader()(g)["n"].to_pylist() for g in fresh(source, 1)}
    assert first == again
    assert first[0] != later[0]
    assert [n - 20 for n in first[1]] != first[0]
    assert sorted(first[1]) == list(range(20, 40))


def test_a_reset_begins_the_same_epoch_again_until_another_is_set() -> None:
    with folder([[1] * 9]) as path:
        source = ParquetSource(path, shuffle=True)
        first = numbers(fresh(source, 4))
        source.reset()
        assert numbers(source) == first


# ---- state ----


@settings(max_examples=30)
@given(files=FILES, cut=st.integers(0, 20), shuffle=st.booleans(), epoch=st.integers(0, 2))
def test_a_resumed_run_continues_as_if_never_stopped(
    files: list[list[int]], cut: int, shuffle: bool, epoch: int
) -> None:
    with folder(files) as path:
        whole = list(fresh(ParquetSource(path, shuffle=shuffle, seed=5), epoch))
        stopped = fresh(ParquetSource(path, shuffle=shuffle, seed=5), epoch)
        head = list(islice(stopped, cut))
        resumed = ParquetSource(path, shuffle=shuffle, seed=5)
        resumed.reset(json.loads(json.dumps(stopped.state_dict())))
        assert head + list(resumed) == whole


def test_a_state_brings_its_seed_along() -> None:
    with folder([[3, 3, 3]]) as path:
        source, other = ParquetSource(path, shuffle=True, seed=1), ParquetSource(path, shuffle=True, seed=2)
        source.reset()
        next(source)
        other.reset(source.state_dict())
        assert numbers(other) == numbers(source)


def test_the_state_does_not_grow() -> None:
    with folder([[1] * 50]) as path:
        source = ParquetSource(path, shuffle=True)
        sizes = {len(json.dumps(source.state_dict() | {"position": 0})) for _ in source}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "change", [{"world_size": 2}, {"shuffle": False}, {"paths": "more"}], ids=["ranks", "shuffle", "rows"]
)
def test_a_state_of_other_data_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path / "data", EVEN)
    write_folder(tmp_path / "more", [*EVEN, [4]])
    settings = {"paths": "data", "shuffle": True} | change
    state = ParquetSource(tmp_path / "data", shuffle=True).state_dict()
    other = ParquetSource(tmp_path / settings.pop("paths"), **settings)
    with pytest.raises(ConfigError, match="position would mean other rows"):
        other.reset(state)


@given(limits=st.lists(st.integers(1, 5), min_size=1))
@settings(max_examples=20)
def test_bursts_hold_what_single_steps_would_give(limits: list[int]) -> None:
    with folder(EVEN) as path:
        source, single = ParquetSource(path), list(ParquetSource(path))
        source.reset()
        taken: list[Any] = []
        for limit in limits:
            if len(taken) == 6:
                with pytest.raises(StopIteration):
                    source.next_burst(limit)
            else:
                burst = source.next_burst(limit)
                assert 1 <= len(burst) <= limit
                taken += burst
        assert taken == single[: len(taken)]


# ---- in a graph ----


@settings(max_examples=10)
@given(files=FILES, batch_size=st.integers(1, 7), cut=st.integers(0, 6), width=st.integers(1, 3))
def test_a_graph_resumed_mid_row_group_at_another_width_gives_the_same_rows(
    files: list[list[int]], batch_size: int, cut: int, width: int
) -> None:
    def loader(path: Path, width: int) -> ElasticLoader[Any]:
        source = ParquetSource(path, shuffle=True, seed=1)
        tables = Rebatch(ElasticMapper(source, source.reader(), num_workers=width, name="read"), batch_size)
        return ElasticLoader(ElasticPrefetcher(tables, 2))

    with folder(files) as path, loader(path, 1) as plain, loader(path, width) as stopped, loader(path, 2) as resumed:
        whole = [table["n"].to_pylist() for table in plain]
        head = [table["n"].to_pylist() for table in islice(stopped, cut)]
        resumed.load_state_dict(stopped.state_dict())
        if cut < len(whole):
            assert head + [table["n"].to_pylist() for table in resumed] == whole
        assert sorted(n for batch in whole for n in batch) == list(range(sum(map(sum, files))))


def test_a_file_that_breaks_midway_names_itself_and_its_row_group_behind_a_stage(tmp_path: Path) -> None:
    write_folder(tmp_path, [[3], [3, 3]])
    source = ParquetSource(tmp_path)
    (tmp_path / "1.parquet").write_bytes(b"PAR1 but no more")
    with (
        ElasticLoader(ElasticMapper(source, source.reader(), num_workers=2, name="read")) as loader,
        pytest.raises(StageError, match=r"stage 'read'.*row group 0 of '.*1\.parquet'"),
    ):
        list(loader)
