"""State dicts of sharded tables: each rank's part, under TorchRec's names, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as RowWise
from torch.distributed.tensor.device_mesh import DeviceMesh

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.lookup import Tables
from lightning_intune.overlap.shard import Shard


@final
class TableState:
    """Tables and their optimizer's state as tensors with a row for every id.

    On one rank they are plain tensors; on several a `DTensor` each, of which a rank holds its own rows, as
    `torch.distributed.checkpoint` saves them and loads them on another number of ranks, or placed otherwise. That of a
    table-wise table is its owner's alone: elsewhere it has the table's shape and an empty local part. No call is a
    collective.
    """

    def __init__(self, tables: Tables, shards: list[Shard], prefix: str) -> None:
        self._tables, self._shards, self._prefix = tables, shards, prefix
        self._meshes: dict[int | None, DeviceMesh] = {}

    def key(self, table: int) -> str:
        """As in TorchRec: `embedding_bags.NAME.weight`."""
        return f"{self._prefix}.{self._tables.tables[table].name}.weight"

    def weights(self) -> dict[str, Tensor]:
        """By key, [num_embeddings, dim]; they share memory with the tables."""
        return {self.key(table): self._whole(table, local) for table, local in self._each(lambda shard: shard.weights)}

    def optimizer(self) -> dict[str, dict[str, Tensor]]:
        """By key, what the optimizer keeps, `NAME.momentum1` and the like; they share memory with it."""
        out: dict[str, dict[str, Tensor]] = {self.key(table): {} for table in range(len(self._tables.tables))}
        for name in self._shards[0].state:
            for table, local in self._each(lambda shard, name=name: shard.state[name]):
                out[self.key(table)][f"{self._tables.tables[table].name}.{name}"] = self._whole(table, local)
        return out

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Whole tensors, of which each rank takes its rows, or `DTensor`s cut as these are. ConfigError otherwise."""
        for table, local in self._each(lambda shard: shard.weights):
            self._load(table, local, state[self.key(table)])

    def load_optimizer(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Likewise."""
        for name in self._shards[0].state:
            for table, local in self._each(lambda shard, name=name: shard.state[name]):
                saved, key = state[self.key(table)], f"{self._tables.tables[table].name}.{name}"
                if key not in saved:
                    raise ConfigError(
                        f"overlap: the state of '{self.key(table)}' holds {list(saved)} and no '{key}': it is another "
                        "optimizer's. Make the collection with the optimizer that it was saved with."
                    )
                self._load(table, local, saved[key])

    def _each(self, values: Callable[[Shard], Tensor]) -> Iterator[tuple[int, Tensor]]:
        parts = [list(shard.parts(values(shard))) for shard in self._shards]
        for table, (stack, place) in sorted(self._tables.place.items()):
            yield table, parts[stack][place]

    def _whole(self, table: int, local: Tensor) -> Tensor:
        if self._shards[0].stack.world_size == 1:
            return local
        owner = self._tables.tables[table].rank
        if owner not in self._meshes:
            self._meshes[owner] = _mesh(owner)
        placements = [RowWise(0) if owner is None else Replicate()]
        shape = torch.Size([self._tables.tables[table].num_embeddings, *local.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self._meshes[owner], placements, run_check=False, shape=shape, stride=stride)

    def _load(self, table: int, local: Tensor, saved: Any) -> None:
        key, values = self.key(table), saved
        stack, place = self._tables.place[table]
        shape = (self._tables.tables[table].num_embeddings, *local.shape[1:])
        if not isinstance(saved, Tensor) or tuple(saved.shape) != shape:
            found = list(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
            raise ConfigError(f"overlap: '{key}' was saved as {found}, and the table wants {list(shape)}. Correct one.")
        if isinstance(saved, DTensor):
            values = saved.to_local()
            if saved.device_mesh.get_coordinate() is None:
                values = local.new_empty(0, *local.shape[1:])  # other ranks have it all; torch drops the width
            if values.shape != local.shape:
                raise ConfigError(
                    f"overlap: this rank's part of '{key}' has {list(values.shape)}, the table's {list(local.shape)}: "
                    "it lies otherwise on the ranks. Load it with torch.distributed.checkpoint, which cuts it anew."
                )
        else:
            values = saved[self._shards[stack].stack.owned(place, self._shards[stack].rank)[0]]
        with torch.no_grad():
            local.copy_(values)


def _mesh(owner: int | None) -> DeviceMesh:
    """All ranks, or the owner alone. It makes no group: all ranks must do that, in one order, and one alone may ask."""
    if owner is None:
        everyone = dist.group.WORLD
        assert everyone is not None, "there are several ranks"
        return DeviceMesh.from_group(everyone, "cpu")
    # One rank needs no group to tell itself anything. So torch makes the meshes that it slices out of others.
    return DeviceMesh("cpu", [owner], _init_backend=False)
