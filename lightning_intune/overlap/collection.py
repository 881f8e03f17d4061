"""Embedding tables that lie on several ranks, with TorchRec's interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn

from lightning_intune.dedup.ragged import gather_rows, packed_starts
from lightning_intune.errors import ConfigError
from lightning_intune.overlap.bags import Features
from lightning_intune.overlap.exchange import Exchange
from lightning_intune.overlap.lookup import Lookup, Tables
from lightning_intune.overlap.placement import placed
from lightning_intune.overlap.row_optimizer import RowOptimizer
from lightning_intune.overlap.shard import Shard
from lightning_intune.overlap.table import tables_of
from lightning_intune.overlap.table_state import TableState
from lightning_intune.overlap.transport import GlooTransport, Transport

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor


class Feed(Protocol):
    """What a pipeline does for the collections of its model."""

    def rows(self, collection: OverlappedCollection, features: Features) -> tuple[Lookup, list[Tensor]]:
        """The rows that `features` ask for, by stack, fetched ahead."""
        ...

    def settle(self) -> None:
        """Wait until every update of the steps taken is made."""
        ...

    @property
    def is_ahead(self) -> bool:
        """Whether it holds rows of a batch not trained on yet."""
        ...


class OverlappedCollection(nn.Module):
    """What the pooled and the sequence collection have in common. Tables are no parameters: `update` is fused.

    So neither DDP nor a dense optimizer sees them. Without a pipeline `forward` and `backward` exchange on the spot.
    """

    _PREFIX: str

    def __init__(
        self,
        tables: Sequence[Any],
        optimizer: RowOptimizer,
        *,
        sharding: Mapping[str, Any] | None = None,
        is_weighted: bool = False,
        transport: Transport | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.transport: Transport = GlooTransport() if transport is None else transport
        world_size = self.transport.world_size
        self.tables = Tables(placed(tables_of(tables), world_size, sharding), world_size, is_weighted=is_weighted)
        self.shards = [Shard(stack, optimizer, self.transport.rank, dtype) for stack in self.tables.stacks]
        self.learning_rate = optimizer.lr
        """Of the steps to come; a scheduler may set it between two."""
        self.num_steps = 0
        """Updates made so far."""
        self.feed: Feed | None = None
        self.table_state = TableState(self.tables, self.shards, self._PREFIX)
        self._exchange: Exchange | None = None

    @abstractmethod
    def forward(self, features: Features) -> Any:
        """TorchRec's result for `features`."""

    def fetch(self, features: Features) -> tuple[Lookup, list[Tensor]]:
        """What `features` look up, and the rows for it; through the pipeline where there is one."""
        if self.feed is not None:
            return self.feed.rows(self, features)
        return self.fetch_now(features, self._own_exchange())

    def fetch_now(self, features: Features, exchange: Exchange) -> tuple[Lookup, list[Tensor]]:
        """Ask for the rows and wait for them; with gradients enabled, `backward` will send theirs and wait as well."""
        lookup = self.tables.lookup(features)
        turn = exchange.ask(lookup.requests)
        assert turn is not None, "this rank has a batch"
        exchange.fetch_early(turn)
        if not torch.is_grad_enabled():
            return lookup, turn.rows

        def give(grads: Sequence[Tensor]) -> None:
            self.num_steps += 1
            exchange.give_rest(turn, grads, lr=self.learning_rate, step=self.num_steps)

        anchor = torch.empty(0, requires_grad=True)  # for `backward` to be called, as rows are no leaves of a graph
        return lookup, list(_Fetched.apply(give, anchor, *turn.rows))  # pyright: ignore[reportArgumentType]

    @property
    def fused_optimizer(self) -> FusedState:
        """Its state, for checkpoints."""
        return FusedState(self)

    def settle(self) -> None:
        """Wait until the updates of all steps taken are made. With a pipeline every rank has to come so far."""
        if self.feed is not None:
            self.feed.settle()

    def may_load(self) -> None:
        """ConfigError where rows of the present state are on their way into the next batch."""
        if self.feed is not None and self.feed.is_ahead:
            raise ConfigError(
                "overlap: the pipeline holds rows of its next batch, which a loaded state would make stale. Load "
                "before the first step or behind the last one, or make a new pipeline behind it."
            )

    def _own_exchange(self) -> Exchange:
        if self._exchange is None:
            self.transport.open()
            self._exchange = Exchange(self.shards, self.transport)
        return self._exchange

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.settle()
        destination.update({f"{prefix}{key}": weights for key, weights in self.table_state.weights().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self.may_load()
        own = {f"{prefix}{self.table_state.key(table)}" for table in self.tables.place}
        rest = {key: value for key, value in state_dict.items() if key not in own}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        missing = sorted(own - set(state_dict))
        missing_keys += missing
        if not missing:
            self.table_state.load_weights({key.removeprefix(prefix): state_dict[key] for key in own})


@final
class OverlappedEmbeddingBagCollection(OverlappedCollection):
    """Pooled embeddings of tables that lie on several ranks, updated by a fused row optimizer.

    It takes TorchRec's `KeyedJaggedTensor`, or a `KeyedJagged` or `InverseKeyedJaggedTensor`, and returns TorchRec's
    `KeyedTensor` [B, sum of dims]; `tables` are `Table`s or TorchRec's `EmbeddingBagConfig`s; the state dict has
    TorchRec's keys. `sharding` says by name which tables are cut by rows and which lie whole on one rank, and on which:
    `"table_wise"`, a `Placement` or TorchRec's `ParameterSharding`, so that what a planner says of the module will do;
    of others `Table` says it, and TorchRec's configs, which cannot, are cut. `tables.tables` has the ranks chosen. Each
    row travels once per rank and batch, however often the batch has its id. Gradients are averaged over the ranks. All
    ranks must make the same calls, with batches of any size, empty ones included. On CPUs.

    Why not TorchRec's own sharded module: it pools at the owner, so every part of a split batch would send all its
    bags once more; and fbgemm updates all rows of a forward pass in one call of its backward pass, with one step count
    for Adam, so that the urgent ones cannot go first. docs/overlap.md has the details.

    >>> from lightning_intune.dedup import KeyedJagged
    >>> from lightning_intune.overlap import SGD, Table
    >>> table = Table(name="t", num_embeddings=4, embedding_dim=2, feature_names=("item",))
    >>> bags = OverlappedEmbeddingBagCollection([table], SGD(lr=0.5))
    >>> bags.load_state_dict({"embedding_bags.t.weight": torch.ones(4, 2)})
    <All keys matched successfully>
    >>> pooled = bags.pooled(KeyedJagged(["item"], torch.tensor([1, 3, 3]), torch.tensor([1, 2])))
    >>> pooled.sum().backward()  # updates rows 1 and 3, of which 3 was read twice
    >>> pooled.tolist(), bags.state_dict()["embedding_bags.t.weight"][:, 0].tolist()
    ([[1.0, 1.0], [2.0, 2.0]], [1.0, 0.5, 1.0, 0.0])
    """

    _PREFIX = "embedding_bags"

    def forward(self, features: Features) -> KeyedTensor:
        """ConfigError where a feature is missing, IndexError for an id outside of its table."""
        kind = _torchrec("KeyedTensor")
        uses, tables = self.tables.uses, self.tables.tables
        return kind(
            keys=[use.name for use in uses],
            length_per_key=[tables[use.table].embedding_dim for use in uses],
            values=self.pooled(features),
        )

    def pooled(self, features: Features) -> Tensor:
        """The columns of `forward` alone, [B, sum of dims], without TorchRec."""
        lookup, rows = self.fetch(features)
        return lookup.pooled(rows)


@final
class OverlappedEmbeddingCollection(OverlappedCollection):
    """Embeddings of sequences, not pooled: `OverlappedEmbeddingBagCollection` with a `JaggedTensor` per feature."""

    _PREFIX = "embeddings"

    def forward(self, features: Features) -> dict[str, JaggedTensor]:
        """By feature, the embeddings [N, dim] of its ids and the lengths [B]; repeats stored once are expanded."""
        kind = _torchrec("JaggedTensor")
        lookup, rows = self.fetch(features)
        out: dict[str, JaggedTensor] = {}
        for use, bags, values in lookup.sequences(rows):
            lengths, embeddings = bags.lengths, values
            if bags.inverse is not None:
                starts = packed_starts(lengths).index_select(0, bags.inverse)
                lengths = lengths.index_select(0, bags.inverse)
                embeddings, _ = gather_rows(values, starts, lengths)
            out[use.name] = kind(values=embeddings, lengths=lengths)
        return out


@final
class FusedState:
    """The optimizer state of one collection as TorchRec's fused optimizers give theirs: `state` and `param_groups`."""

    def __init__(self, collection: OverlappedCollection) -> None:
        self._collection = collection

    def state_dict(self) -> dict[str, Any]:
        """By table what the optimizer keeps, and beside it the number of steps made and the learning rate."""
        self._collection.settle()
        group = {"lr": self._collection.learning_rate, "step": self._collection.num_steps}
        return {"state": self._collection.table_state.optimizer(), "param_groups": [group]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ConfigError for another optimizer's, or tables of another size."""
        self._collection.may_load()
        self._collection.table_state.load_optimizer(state["state"])
        [group] = state["param_groups"]
        self._collection.learning_rate, self._collection.num_steps = group["lr"], group["step"]


class _Fetched(torch.autograd.Function):
    """Rows as they are; their gradients go to `give`, all together, once."""

    @staticmethod
    def forward(ctx: Any, give: Callable[[Sequence[Tensor]], None], anchor: Tensor, *rows: Tensor) -> Any:  # noqa: ARG004
        ctx.give = give
        return tuple(row.view_as(row) for row in rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.give(grads)
        return (None, None, *[None] * len(grads))


def _torchrec(name: str) -> Any:
    try:
        from torchrec.sparse import jagged_tensor
    except (ImportError, OSError) as error:  # an fbgemm of another torch shows as OSError
        raise ConfigError(
            f"overlap: its collections return TorchRec's {name}, and TorchRec cannot be imported ({error}). "
            "`pip install 'lightning-intune[torchrec]'`, with the fbgemm-gpu or fbgemm-gpu-cpu of this torch."
        ) from error
    return getattr(jagged_tensor, name)
