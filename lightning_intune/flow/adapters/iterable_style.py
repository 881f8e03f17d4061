"""An IterableDataset's DataLoader as a graph: tickets, an elastic stage that serves them, and their weaving."""

from __future__ import annotations

from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch.utils.data import IterDataPipe
from torch.utils.data.dataloader import DataLoader

from lightning_intune.flow.adapters.map_style import pinned
from lightning_intune.flow.adapters.options import Options
from lightning_intune.flow.adapters.rank_share import world
from lightning_intune.flow.adapters.shard_pool import ShardPool
from lightning_intune.flow.adapters.shard_reader import Answer, ShardReader, Ticket
from lightning_intune.flow.node import Node, State
from lightning_intune.flow.stage import ElasticStage
from lightning_intune.knobs import Bounds

T = TypeVar("T")


def iterable_style_graph(loader: DataLoader[Any], options: Options) -> Node[Any]:
    """The graph that gives `loader`'s batches, in its order.

    The loader's `num_workers` is the number of its shards and stays so, whatever the stage's width: it
    decides which batches there are. The width is how many of them are at work at once.
    """
    num_shards = loader.num_workers
    reader = ShardReader(
        loader.dataset,
        loader.collate_fn,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        num_shards=num_shards,
        worker_init_fn=loader.worker_init_fn,
        world=world(),
    )
    pool = ShardPool(
        reader, num_shards, options.lanes_for(loader, reader), kind=options.method_for(loader), stage=options.name
    )
    return pinned(Weave(ShardStage(TicketSource(loader, pool), pool, loader, options), pool), loader)


@final
class TicketSource(Node[Ticket]):
    """Tickets for shard 0, 1, ..., 0, 1, ... until every shard has ended. Draws an epoch's seeds as a DataLoader does.

    A DataLoader leaves a shard out of the round once it has ended; here its tickets come back empty.
    """

    def __init__(self, loader: DataLoader[Any], pool: ShardPool) -> None:
        super().__init__()
        self._pool, self._num_shards = pool, loader.num_workers
        self._generator, self._persistent = loader.generator, loader.persistent_workers
        self._is_datapipe = isinstance(loader.dataset, IterDataPipe)
        self._group: Any = None
        self._taken, self._base_seed = 0, -1
        self._shared_seed: int | None = None

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        if initial_state is None:
            self._taken = 0
            self._draw_seeds()
        else:
            self._taken = initial_state["taken"]
            self._base_seed, self._shared_seed = initial_state["base_seed"], initial_state["shared_seed"]

    def _draw_seeds(self) -> None:
        """The draws of `_BaseDataLoaderIter.__init__` and `_reset`, in their order."""
        goes_on = self._persistent and self._base_seed >= 0
        if self._is_datapipe:
            self._shared_seed = self._draw_shared_seed()
        if not goes_on:
            self._base_seed = int(self._draw().item())
            if self._is_datapipe and self._num_shards > 0:
                self._draw_shared_seed()  # drawn again at the workers' start, and not used

    def _draw(self) -> torch.Tensor:
        return torch.empty((), dtype=torch.int64).random_(generator=self._generator)

    def _draw_shared_seed(self) -> int:
        seed = self._draw()
        if world()[0] > 1:
            self._group = self._group or dist.new_group(backend="gloo")
            dist.broadcast(seed, src=0, group=self._group)
        return int(seed.item())

    def next(self) -> Ticket:
        # How many empty tickets come behind the last batch is chance; those of the pass that is resumed come again.
        if self._pool.all_over and self._taken >= self._pool.resumed_at:
            raise StopIteration
        number, shard = divmod(self._taken, max(1, self._num_shards))
        self._taken += 1
        return Ticket(shard, number, self._base_seed, self._shared_seed)

    def get_state(self) -> State:
        return {"taken": self._taken, "base_seed": self._base_seed, "shared_seed": self._shared_seed}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_group": None, "_BaseNode__initialized": False}


@final
class ShardStage(ElasticStage[Answer]):
    """Tickets into answers, in order. No more than one worker per shard is of use, and none more is allowed."""

    def __init__(self, source: TicketSource, pool: ShardPool, loader: DataLoader[Any], options: Options) -> None:
        plan = options.plan(loader, pool.serve, None if pool.kind == "thread" else pool, in_order=True)
        self._max_concurrent = options.max_concurrent
        high = pool.num_shards if options.max_workers is None else min(options.max_workers, pool.num_shards)
        super().__init__(source, plan, width=options.width_for(loader), bounds=Bounds(low=0, high=high))

    def _widths(self) -> tuple[int, int | None]:
        return self._target, self._max_concurrent


@final
class Weave(Node[T]):
    """The batches out of the answers of the pool's shards, in turn. Empty answers end a shard; all ended, the epoch.

    State: how many answers were taken, which shards have ended, and the datasets' own states where they
    have any. Without one, a resumed shard is run through up to its place, batches and all, so that what
    it draws at random comes out as before.
    """

    def __init__(self, source: ShardStage, pool: ShardPool) -> None:
        super().__init__(source)
        self._source, self._pool = source, pool

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state = initial_state or {"source": None, "taken": 0, "starts": {}, "over": []}
        self._taken = int(state["taken"])
        self._starts = {int(shard): (int(start[0]), start[1]) for shard, start in state["starts"].items()}
        self._over = set(state["over"])
        self._pool.stop()
        self._source.reset(state["source"])
        self._pool.begin(self._taken, self._starts, sorted(self._over))

    def next(self) -> T:
        while True:
            is_batch, batch, state = next(self._source)
            number, shard = divmod(self._taken, self._pool.num_shards)
            self._taken += 1
            if not is_batch:
                self._over.add(shard)
                continue
            if state is not None:
                self._starts[shard] = (number + 1, state)
            return batch

    def get_state(self) -> State:
        return {
            "source": self._source.state_dict(),
            "taken": self._taken,
            "starts": {shard: list(start) for shard, start in self._starts.items()},
            "over": sorted(self._over),
        }

    def release(self) -> None:
        self._pool.stop()

    def shutdown(self) -> None:
        self._pool.stop()
        super().shutdown()
        self._pool.close()
