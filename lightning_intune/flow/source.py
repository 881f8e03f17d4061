"""The beginning of the data flow: which row groups this rank reads, in which order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.config import check_columns
from lightning_intune.errors import ConfigError
from lightning_intune.flow.filesystems import Paths, locate
from lightning_intune.flow.node import Node, State
from lightning_intune.flow.parquet_files import ParquetFile, common_schema, find_files, read_footers
from lightning_intune.flow.row_filter import checked_defaults, row_filter
from lightning_intune.flow.row_groups import ReadRowGroup, RowGroup
from lightning_intune.flow.seeded import checked_seed

_VERSION = 1
_Indices = npt.NDArray[np.int64]


@final
class ParquetSource(Node[RowGroup]):
    """Emits descriptions of Parquet row groups; it never reads a row and never blocks (DESIGN, section 3).

    Reading is an elastic stage of its own: `ElasticMapper(source, source.reader(), num_workers=4)`.

    All footers are read here, at construction, so that a user's mistake shows before any worker starts: ConfigError
    for a missing path, an empty folder, a file that is not Parquet, types that clash between files, an unknown column,
    a bad rank. `columns` None reads all. `paths` are files, folders and globs, or URIs of any filesystem that Arrow or
    fsspec reaches; a list of files is also how a snapshot of an Iceberg or Delta table comes in.

    Folders named as Hive names them, `day=2026-01-01`, give a column each (int64, double, date32 or string, whichever
    holds all its values), unless the file has one of that name itself; `__HIVE_DEFAULT_PARTITION__` is null.

    Files may differ: numbers are widened, and a column that only some files have holds its value in `defaults` for
    the others, else null. `filters` keeps only rows for which it is true: an Arrow expression, or what
    `pyarrow.parquet` takes, as in `[("day", ">=", 5)]`. Row groups whose statistics rule it out are never read; all
    row counts here are before filtering. `entries_of` may name, after a look at the first file, a column of lists of
    single values whose entries are then counted, as footers tell them: `num_entries`.

    An epoch's order is that of the files, or with `shuffle` a permutation drawn from (seed, epoch). `set_epoch` says
    which epoch the next fresh `reset` begins. Row groups are dealt out over the ranks along that order, each to the
    rank that has the fewest rows so far; who then has too many gives the end of its last one to those that have too
    few. So every row is on exactly one rank per epoch, ranks differ by one row at most, and fewer row groups than
    there are ranks are read twice. The state is (seed, epoch, position) and does not grow.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        columns: Sequence[str] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        filesystem: Any = None,
        filters: Any = None,
        defaults: Mapping[str, Any] | None = None,
        entries_of: Callable[[ParquetFile], str | None] | None = None,
    ) -> None:
        super().__init__()
        _check_rank(rank, world_size)
        _check_selection(columns)
        located, self._filesystem = locate(paths, filesystem)
        files = read_footers(find_files(located, self._filesystem), self._filesystem)
        schema = common_schema(files)
        check_columns("ParquetSource", columns or (), schema.names)
        self.about, self.from_folders = files[0].about, files[0].from_folders
        """What our own commands wrote into the first footer; columns that stand in the names of folders."""
        counted = None if entries_of is None else entries_of(files[0])
        entries = [None if counted is None else file.num_entries(counted) for file in files]
        self.num_entries = None if None in entries else sum(entry for entry in entries if entry is not None)
        """Entries of the column that `entries_of` names, all ranks together, before any filter; None: not known."""
        self.arrow_schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        self.shuffle, self.rank, self.world_size = shuffle, rank, world_size
        self._keep = None if filters is None else row_filter(filters, schema)
        self._defaults = checked_defaults(defaults or {}, schema)
        keep = None if self._keep is None else self._keep.expression
        self._groups = [(file.path, number, rows) for file in files for number, rows in file.row_groups(keep, schema)]
        if not self._groups:
            why = "hold no row" if keep is None else "hold no row that the filters let through"
            raise ConfigError(
                f"ParquetSource: the {len(files)} files {why}. Write the data first, or change the filters."
            )
        self._rows = np.array([rows for _, _, rows in self._groups], np.int64)
        self._seed, self._epoch, self._next_epoch = checked_seed("ParquetSource", seed), 0, 0
        self._position = 0
        self._order = self._order_of(seed, 0)

    @property
    def num_row_groups(self) -> int:
        """Row groups of the whole data set, all ranks together."""
        return len(self._groups)

    @property
    def num_rows(self) -> int:
        """Rows of the whole data set, all ranks together."""
        return int(self._rows.sum())

    @property
    def num_rank_rows(self) -> int:
        """Rows this rank reads in an epoch, before any filter."""
        return _quota(self.num_rows, self.world_size, self.rank)

    @property
    def min_rank_rows(self) -> int:
        """Rows that every rank has, in every epoch."""
        return self.num_rows // self.world_size

    @property
    def max_rank_rows(self) -> int:
        """Rows that no rank exceeds, in any epoch: one more than `min_rank_rows`, or as many."""
        return _quota(self.num_rows, self.world_size, 0)

    def __len__(self) -> int:
        """Row groups, or parts of them, that this rank reads in the epoch that the next fresh `reset` begins."""
        return len(self._order_of(self._seed, self._next_epoch))

    def reader(
        self, *, shuffle_rows: bool | None = None, dictionaries: bool = False, pre_buffer: bool | None = None
    ) -> ReadRowGroup:
        """The function that reads this source's descriptions, for the next stage.

        `shuffle_rows` (default: as the source shuffles) also permutes the rows within each row group. For the other
        settings see `ReadRowGroup`; `dictionaries` suits `ToBatch`, which wants each distinct string once.
        """
        return ReadRowGroup(
            self.arrow_schema,
            filesystem=self._filesystem,
            keep=self._keep,
            defaults=self._defaults,
            shuffle=self.shuffle if shuffle_rows is None else shuffle_rows,
            dictionaries=dictionaries,
            pre_buffer=pre_buffer,
        )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next fresh `reset` begins; ConfigError for a negative one."""
        if epoch < 0:
            raise ConfigError(f"ParquetSource: epoch={epoch} is negative. Count epochs from 0.")
        self._next_epoch = epoch

    def reset(self, initial_state: State | None = None) -> None:
        """Begin the epoch, or continue from a state; ConfigError for a state of other data."""
        super().reset(initial_state)
        if initial_state is None:
            self._epoch, self._position = self._next_epoch, 0
        else:
            self._check_state(initial_state)
            self._seed, self._epoch = initial_state["seed"], initial_state["epoch"]
            self._position = initial_state["position"]
        self._order = self._order_of(self._seed, self._epoch)

    def next(self) -> RowGroup:
        """The next description; StopIteration at the epoch's end."""
        if self._position >= len(self._order):
            raise StopIteration
        index, start, stop = self._order[self._position].tolist()
        self._position += 1
        path, number, num_rows = self._groups[index]
        return RowGroup(
            path=path,
            row_group=number,
            num_rows=num_rows,
            start=start,
            stop=stop if stop < num_rows else None,
            index=index,
            epoch=self._epoch,
            seed=self._seed,
        )

    def next_burst(self, limit: int) -> list[RowGroup]:
        """Up to `limit` descriptions at once, at least one; StopIteration at the end."""
        left = len(self._order) - self._position
        if left == 0:
            raise StopIteration
        return [self.next() for _ in range(min(limit, left))]

    def get_state(self) -> State:
        """Seed, epoch, position, and what they are a position in."""
        return {
            "version": _VERSION,
            "data": self._fingerprint(),
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def _fingerprint(self) -> list[int]:
        return [self.num_row_groups, self.num_rows, self.world_size, int(self.shuffle)]

    def _check_state(self, state: State) -> None:
        if state.get("version") != _VERSION or state.get("data") != self._fingerprint():
            raise ConfigError(
                f"ParquetSource: this state is of (row groups, rows, ranks, shuffle) {state.get('data')}, version "
                f"{state.get('version')}, and here are {self._fingerprint()}, version {_VERSION}: its position would "
                "mean other rows. Resume with the same files, ranks and shuffle, or start the epoch anew."
            )

    def _order_of(self, seed: int, epoch: int) -> _Indices:
        """What this rank reads in an epoch, in order: [parts, 3], each an index and the rows [start, stop) of it."""
        order: _Indices = np.arange(len(self._groups), dtype=np.int64)
        if self.shuffle:
            order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(order)
        return _deal(order, self._rows[order], self.world_size)[self.rank]


def _quota(num_rows: int, num_ranks: int, rank: int) -> int:
    return num_rows // num_ranks + (rank < num_rows % num_ranks)


def _deal(order: _Indices, rows: _Indices, num_ranks: int) -> list[_Indices]:
    """`order` dealt out, each to the rank with the fewest rows so far, the lowest rank of several; then evened out.

    Whoever has more than its quota held at most its quota before its last row group came: that one gives what is
    too much.

    >>> [share.tolist() for share in _deal(np.array([7, 5, 3]), np.array([4, 4, 4]), 2)]
    [[[7, 0, 4], [3, 0, 2]], [[5, 0, 4], [3, 2, 4]]]
    """
    parts = np.stack([order, np.zeros_like(order), rows], axis=1)
    if num_ranks == 1:
        return [parts]
    loads: list[tuple[int, int]] = [(0, rank) for rank in range(num_ranks)]
    owners = np.empty(len(order), np.int64)
    for place, num_rows in enumerate(rows.tolist()):
        load, rank = loads[0]
        owners[place] = rank
        heapq.heapreplace(loads, (load + num_rows, rank))
    missing = {rank: _quota(int(rows.sum()), num_ranks, rank) - load for load, rank in loads}
    shares = [parts[owners == rank] for rank in range(num_ranks)]
    takers = [rank for rank in range(num_ranks) if missing[rank] > 0]
    for rank in range(num_ranks):
        while missing[rank] < 0:
            index, start, stop = shares[rank][-1].tolist()
            taker = takers[0]
            cut = max(start, stop - min(-missing[rank], missing[taker]))
            shares[rank][-1, 2] = cut
            shares[taker] = np.concatenate([shares[taker], [[index, cut, stop]]])
            missing[rank] += stop - cut
            missing[taker] -= stop - cut
            if missing[taker] == 0:
                takers.pop(0)
    return [share[share[:, 1] < share[:, 2]] for share in shares]


def _check_selection(columns: Sequence[str] | None) -> None:
    if isinstance(columns, str):
        raise ConfigError(f"ParquetSource: columns='{columns}' is a text. Give a list, as in ['{columns}'].")
    if columns is not None and (not columns or len(set(columns)) < len(columns)):
        raise ConfigError(
            f"ParquetSource: columns={list(columns)} is empty or names a column twice. Name each column once, or "
            "leave `columns` out to read all."
        )


def _check_rank(rank: Any, world_size: Any) -> None:
    if world_size < 1:
        raise ConfigError(f"ParquetSource: world_size={world_size} leaves no rank to read. Set it to 1 or more.")
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"ParquetSource: rank={rank} is not among the {world_size} ranks, so its rows would be nobody's. "
            f"Set rank to 0 to {world_size - 1}."
        )
