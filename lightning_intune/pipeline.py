"""Settings -> graph -> loader: what one split's files become, and the checks of what makes no sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
import torch.distributed as dist

from lightning_intune.balance.feed import Feed, ShareToBatch
from lightning_intune.balance.settings import OFF, Balance
from lightning_intune.balance.units import Units
from lightning_intune.config import Schema
from lightning_intune.dedup.jagged import Batch
from lightning_intune.dedup.layout import SessionLayout
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.session_batches import SessionBatches
from lightning_intune.dedup.transform import DedupSparse
from lightning_intune.errors import ConfigError
from lightning_intune.flow.agree import EqualSteps
from lightning_intune.flow.batch import Rebatch
from lightning_intune.flow.communicator import GlooCommunicator
from lightning_intune.flow.device import PrefetchToDevice
from lightning_intune.flow.elastic import ElasticMapper, ElasticPrefetcher
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.flow.node import Node
from lightning_intune.flow.on_error import RAISE, OnError, checked_policy
from lightning_intune.flow.parquet_files import ParquetFile
from lightning_intune.flow.pin import PinMemory
from lightning_intune.flow.row_shuffle import RowShuffle
from lightning_intune.flow.source import ParquetSource
from lightning_intune.flow.transform import ToBatch

Paths = str | list[str]

_STAGES = ("read", "transform", "prefetch")
_FIRST_WIDTHS = {"read": 1, "transform": 1, "prefetch": 2}
_WINDOW_BATCHES = 4
_SESSIONS_PER_TABLE = 256
"""Row groups of sessions are cut into tables of so many before their impressions are counted, at any batch size."""


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose loader it is: one rank's of `world_size`, for training or not, for a model on `device`."""

    rank: int = 0
    world_size: int = 1
    is_train: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    takes_over: bool = False
    """Balanced batches from a checkpoint of another number of ranks."""


@final
@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The settings of `InTuneDataModule`, which says what they mean. ConfigError for those that make no sense."""

    schema: Schema
    batch_size: int = 1024
    shuffle: bool = True
    seed: int = 0
    mix_row_groups: int = 8
    drop_last: bool = False
    widths: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of stages that begin at another width than 1; of `prefetch` than 2."""
    max_workers: int = 64
    method: Literal["thread", "process"] = "thread"
    max_prefetch_bytes: int | None = None
    filesystem: Any = None
    filters: Any = None
    dedup: list[list[str]] | None = None
    on_error: Mapping[str, OnError] = field(default_factory=dict[str, OnError])
    balance: Balance = OFF
    pin_memory: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_widths(self.widths, self.max_workers)
        object.__setattr__(self, "widths", _FIRST_WIDTHS | dict(self.widths))
        object.__setattr__(self, "on_error", _checked_policies(self.on_error))
        object.__setattr__(self, "filters", _as_tuples(self.filters))
        self._sparse()  # a group that names no feature shows here, not after the data is found
        self.balance.check(self.schema)
        if self.balance.is_on and self.on_error.get("transform", RAISE).skip:
            raise ConfigError(
                "InTuneDataModule: on_error may not skip batches of 'transform' with balance=: ranks would no longer "
                "take the same steps. Retry there, or skip in 'read'."
            )
        for name in ("batch_size", "mix_row_groups"):
            if getattr(self, name) < 1:
                makes = "makes no batch" if name == "batch_size" else "holds no rows"
                raise ConfigError(f"InTuneDataModule: {name}={getattr(self, name)} {makes}. Set it to 1 or more.")
        if self.pin_memory not in (True, False, "auto"):
            raise ConfigError(
                f"InTuneDataModule: pin_memory={self.pin_memory!r} is unknown. Give true, false or 'auto'."
            )

    def loader(self, paths: Paths, place: Place) -> ElasticLoader[Batch]:
        """The graph of the files at `paths`. Starts no worker; where ranks must agree, all come here together."""
        shuffle = place.is_train and self.shuffle
        settings = self.balance if place.is_train else self.balance.unbalanced
        units = Units(settings, self.schema, self.dedup, paths, self.filesystem) if settings.is_on else None
        source = ParquetSource(
            paths,
            columns=self.schema.columns if units is None else units.columns,
            entries_of=self._counted if units is None else None,
            shuffle=shuffle,
            seed=self.seed,
            rank=place.rank,
            world_size=place.world_size,
            filesystem=self.filesystem,
            filters=self.filters,
        )
        layout = self._layout(source) if units is None else None
        if units is not None:
            units.validate(source.arrow_schema, source.about)
        else:
            (layout or self.schema).validate(source.arrow_schema)
        num_batches = self._num_batches(source, are_rows=layout is None and (units is None or units.are_rows))
        if place.world_size > 1:
            _check_group()
        # What a filter lets through, or fails, shows in reading only.
        is_known = self.filters is None and not any(policy.skip for policy in self.on_error.values())
        if units is not None:
            is_known = is_known and units.are_rows
            return self._balanced(source, units, settings, place, is_known=is_known, shuffle=shuffle)
        if layout is not None:
            is_known = is_known and source.num_entries is not None and place.world_size == 1
            node = self._of_sessions(source, layout, shuffle=shuffle)
        else:
            node = self._of_rows(source, shuffle=shuffle)
        known = num_batches if is_known else None
        node = self._ready(node)
        if place.world_size > 1:
            num_items = None if known is None else [known] * place.world_size
            node = _equal_steps(node, "drop" if self.drop_last else "pad", num_items)
        return ElasticLoader(self._copied(node, place), batch_size=self.batch_size, num_batches=known)

    def _layout(self, file: ParquetSource | ParquetFile) -> SessionLayout | None:
        return SessionLayout.of(self.schema, self.dedup or (), file.about, file.from_folders)

    def _counted(self, file: ParquetFile) -> str | None:
        layout = self._layout(file)
        return None if layout is None else layout.counted

    def _of_rows(self, source: ParquetSource, *, shuffle: bool) -> Node[Batch]:
        """Batches of files whose rows are impressions."""
        sparse = self._sparse()
        reader = source.reader(dictionaries=True, shuffle_rows=shuffle and sparse is None)
        read = self._stage(source, reader, "read", "thread")
        tables = self._cut(read, self.batch_size, drop_last=self.drop_last, shuffle=shuffle)
        return self._stage(tables, ToBatch(self.schema, sparse=sparse), "transform", self.method)

    def _of_sessions(self, source: ParquetSource, layout: SessionLayout, *, shuffle: bool) -> Node[Batch]:
        """Batches of as many impressions, of files whose rows are sessions."""
        read = self._stage(source, source.reader(shuffle_rows=shuffle), "read", "thread")
        tables = self._cut(read, _SESSIONS_PER_TABLE, drop_last=False, shuffle=shuffle)
        tables = SessionBatches(tables, self.batch_size, session_level=layout.level, drop_last=self.drop_last)
        return self._stage(tables, layout.to_batch(), "transform", self.method)

    def _balanced(
        self, source: ParquetSource, units: Units, settings: Balance, place: Place, *, is_known: bool, shuffle: bool
    ) -> ElasticLoader[Batch]:
        """The graph whose batches are made of units that were dealt out by cost."""
        world_size, num_rows = source.world_size, source.num_rows
        by_rank = [num_rows // world_size + (rank < num_rows % world_size) for rank in range(world_size)]
        read = self._stage(source, units.reader(source, shuffle=shuffle), "read", "thread")
        feed = Feed(
            settings=settings, batch_size=self.batch_size, drop_last=self.drop_last, takes_over=place.takes_over
        )
        node, length = feed.node(
            self._cut(read, self.batch_size, drop_last=False, shuffle=shuffle),
            source,
            units.measure(),
            world_size=world_size,
            num_rows=by_rank if is_known else None,
        )
        node = self._ready(self._stage(node, ShareToBatch(units.to_batch()), "transform", self.method))
        return ElasticLoader(self._copied(node, place), batch_size=self.batch_size, num_batches=length)

    def _cut(self, tables: Node[Any], num_rows: int, *, drop_last: bool, shuffle: bool) -> Node[Any]:
        """Tables of `num_rows` rows, mixed from several row groups where they are shuffled."""
        if shuffle and self.mix_row_groups > 1:
            num_tables = self.mix_row_groups
            return RowShuffle(tables, num_rows, num_tables=num_tables, seed=self.seed, drop_last=drop_last)
        return Rebatch(tables, num_rows, drop_last=drop_last)

    def _num_batches(self, source: ParquetSource, *, are_rows: bool) -> int:
        """Batches of an epoch before any filter, where they can be known. ConfigError where a rank has none."""
        size, num_ranks, num_entries = self.batch_size, source.world_size, source.num_entries
        least, most = source.min_rank_rows, source.max_rank_rows
        if num_entries is not None:  # of all ranks: one may have more than its part, and another then less
            least, most = num_entries // num_ranks, -(-num_entries // num_ranks)
        num_batches = least // size if self.drop_last else -(-most // size)
        if ((are_rows or num_entries is not None) and num_batches == 0) or source.min_rank_rows == 0:
            count = f"{source.num_rows} rows" if num_entries is None else f"{num_entries} impressions"
            raise ConfigError(
                f"InTuneDataModule: {count} over {num_ranks} ranks do not fill one batch of {size} each. Lower "
                "batch_size, or use fewer ranks."
            )
        return num_batches

    def _stage(self, source: Node[Any], function: Any, name: str, method: Any) -> ElasticMapper[Any]:
        return ElasticMapper(
            source,
            function,
            self.widths[name],
            method=method,
            name=name,
            min_workers=1,
            max_workers=self.max_workers,
            on_error=self.on_error.get(name, RAISE),
        )

    def _ready(self, batches: Node[Batch]) -> Node[Batch]:
        return ElasticPrefetcher(batches, self.widths["prefetch"], max_bytes=self.max_prefetch_bytes)

    def _copied(self, batches: Node[Batch], place: Place) -> Node[Batch]:
        """Page-locked and on the device, ahead of the step; last in the graph, as its pull waits on that stream."""
        if self.pin_memory is False or (self.pin_memory == "auto" and place.device.type != "cuda"):
            return batches
        return PrefetchToDevice(PinMemory(batches), place.device)

    def _sparse(self) -> DedupSparse | None:
        return None if self.dedup is None else DedupSparse(self.schema.sparse, DedupPlan.of(*self.dedup))


def _check_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "InTuneDataModule: the Trainer has several ranks, and torch.distributed is not initialized, so they cannot "
            "agree on their steps. Use a strategy that does that, as ddp or fsdp do."
        )


def _equal_steps(node: Node[Batch], mode: Literal["drop", "pad"], num_items: list[int] | None) -> EqualSteps[Batch]:
    """`node` with as many steps on every rank: where the ranks take their batches in step.

    The group is made here, where Lightning has brought every rank to the same place.
    """
    ranks = GlooCommunicator()
    ranks.open()
    return EqualSteps(node, mode=mode, window=_WINDOW_BATCHES, num_items=num_items, communicator=ranks)


def _as_tuples(filters: Any) -> Any:
    """YAML has no tuples, and pyarrow wants a condition (column, operator, value) to be one."""
    if not isinstance(filters, list):
        return filters
    is_condition = len(filters) == 3 and isinstance(filters[1], str)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(filters) if is_condition else [_as_tuples(member) for member in filters]


def _checked_policies(policies: Mapping[str, OnError]) -> dict[str, OnError]:
    for name in policies:
        if name not in _STAGES[:2]:
            raise ConfigError(
                f"InTuneDataModule: on_error names the stage '{name}'; those with a function are "
                f"{', '.join(_STAGES[:2])}. Use those names."
            )
    return {name: checked_policy(f"InTuneDataModule: stage '{name}'", policy) for name, policy in policies.items()}


def _check_widths(widths: Mapping[str, int], max_workers: int) -> None:
    if max_workers < 1:
        raise ConfigError(f"InTuneDataModule: max_workers={max_workers} leaves no worker. Set it to 1 or more.")
    for name, width in widths.items():
        if name not in _STAGES:
            raise ConfigError(
                f"InTuneDataModule: widths names the stage '{name}'; there are {', '.join(_STAGES)}. Use those names."
            )
        if not 1 <= width <= max_workers:
            raise ConfigError(
                f"InTuneDataModule: widths gives '{name}' {width} workers, outside [1, max_workers={max_workers}]. "
                "Set a width within that."
            )
