"""From tables of units to balanced batches: the part of the DataModule's graph that `balance=` adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, final

import pyarrow as pa
import torch

from lightning_intune.balance.batcher import BalancedBatcher
from lightning_intune.balance.channel import GlooChannel
from lightning_intune.balance.exchange import BalancedExchange
from lightning_intune.balance.rows import Row, TableRows, joined
from lightning_intune.balance.settings import Balance
from lightning_intune.balance.shards import Sharded, Shards
from lightning_intune.balance.share import RankBatch
from lightning_intune.dedup.jagged import Batch
from lightning_intune.errors import ConfigError
from lightning_intune.flow.batch import Batch as Lists
from lightning_intune.flow.node import BaseNode, Node, State


@final
@dataclass(frozen=True, kw_only=True)
class TableShare:
    """One rank's rows of one step."""

    table: pa.Table
    loss_scale: float | None
    """None: the batch is no part of a global one."""
    is_padding: bool


@final
class JoinRows(Node[TableShare]):
    """What a rank was dealt in a step as one table."""

    def __init__(self, source: BaseNode[RankBatch[Row]] | BaseNode[list[Row]]) -> None:
        super().__init__(source)
        self._source: BaseNode[Any] = source

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._source.reset(initial_state)

    def next(self) -> TableShare:
        dealt = next(self._source)
        if isinstance(dealt, RankBatch):
            return TableShare(table=joined(dealt.samples), loss_scale=dealt.loss_scale, is_padding=dealt.is_padding)
        return TableShare(table=joined(dealt), loss_scale=None, is_padding=False)

    def get_state(self) -> State:
        return self._source.state_dict()


@final
class ShareToBatch:
    """A function from a `TableShare` to a `Batch` with its `loss_scale`; padding weighs nothing. Picklable."""

    def __init__(self, to_batch: Callable[[pa.Table], Batch]) -> None:
        self._to_batch = to_batch

    def __call__(self, share: TableShare) -> Batch:
        batch = self._to_batch(share.table)
        if share.is_padding:
            batch = replace(batch, weights=torch.zeros(len(batch)))
        scale = share.loss_scale
        return batch if scale is None else replace(batch, loss_scale=torch.tensor(scale, dtype=torch.float32))


@final
@dataclass(frozen=True, kw_only=True)
class Feed:
    """How a rank's units become its batches."""

    settings: Balance
    batch_size: int
    drop_last: bool
    takes_over: bool = False
    """Whether a state of another number of ranks is to be loaded: the epoch's rest has another length."""

    def node(
        self,
        tables: BaseNode[pa.Table],
        source: Sharded,
        measure: Any,
        *,
        world_size: int,
        num_rows: Sequence[int] | None,
    ) -> tuple[Node[TableShare], Callable[[], int] | None]:
        """The steps, and what tells how many there are, where that is known.

        `num_rows` are every rank's units in an epoch. With several ranks `torch.distributed` must be initialized: the
        group is made here, where every rank has come to the same place.
        """
        rows = TableRows(tables, measure)
        if world_size == 1 and not self.takes_over:
            return JoinRows(self._alone(rows)), self._length_alone(num_rows)
        if self.settings.max_cost is not None:
            raise ConfigError(
                f"Balance: max_cost={self.settings.max_cost} is for one rank, and there are {world_size}: they take "
                "equally many steps. Leave it out, and set batch_size."
            )
        channel = GlooChannel(self.settings.timeout_s)
        if world_size > 1:
            channel.open()
        known = None if self.takes_over else num_rows
        settings = self.settings
        exchange = BalancedExchange(
            Shards(rows, source),
            length=attrgetter("length"),
            count=attrgetter("count"),
            batch_size=self.batch_size,
            cost=settings.cost_model(),
            mode=settings.mode or "off",
            equal_count=settings.equal_count,
            uneven="drop" if self.drop_last else "pad",
            window=settings.window,
            num_samples=known,
            timeout_s=settings.timeout_s,
            channel=channel,
        )
        return JoinRows(exchange), None if known is None else exchange.__len__

    def _alone(self, rows: TableRows) -> Node[list[Row]]:
        settings = self.settings
        if settings.mode == "off":
            return Lists(rows, self.batch_size, drop_last=self.drop_last)
        by_count = settings.max_cost is None
        return BalancedBatcher(
            rows,
            length=attrgetter("length"),
            batch_size=self.batch_size if by_count else None,
            max_cost=settings.max_cost,
            reservoir=settings.window * self.batch_size,
            cost=settings.cost_model(),
            drop_last=self.drop_last and by_count,
        )

    def _length_alone(self, num_rows: Sequence[int] | None) -> Callable[[], int] | None:
        if num_rows is None or (self.settings.mode != "off" and self.settings.max_cost is not None):
            return None
        num_full, rest = divmod(num_rows[0], self.batch_size)
        return lambda: num_full + (rest > 0 and not self.drop_last)
