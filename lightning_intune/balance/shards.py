"""One graph that reads any shard of the data, one after another."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, final

from lightning_intune.flow.node import BaseNode, Node, State

T = TypeVar("T")


class Sharded(Protocol):
    """A source that reads share `rank` of `world_size`; both may be set before a `reset`, as `ParquetSource`'s may."""

    rank: int
    world_size: int


@final
class Shards(Node[T]):
    """`root`, whose first node is `source`: `shard` says which shard the next `reset` begins.

    So a rank that takes over the shards of others reads them with the stages that it has, at the widths they are
    tuned to, and its graph stays the same one.
    """

    def __init__(self, root: BaseNode[T], source: Sharded) -> None:
        super().__init__(root)
        self._root, self._source = root, source

    def shard(self, number: int, num_shards: int) -> Shards[T]:
        """The same node, turned to a shard."""
        self._source.rank, self._source.world_size = number, num_shards
        return self

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._root.reset(initial_state)

    def next(self) -> T:
        return next(self._root)

    def get_state(self) -> dict[str, Any]:
        return self._root.state_dict()
