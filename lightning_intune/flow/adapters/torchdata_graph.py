"""A graph of torchdata nodes with its parallel ones replaced by elastic ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, final

from torchdata.nodes import ParallelMapper, Prefetcher
from torchdata.nodes.map import MapOverBatch

from lightning_intune.flow.elastic import ElasticMapper, ElasticPrefetcher
from lightning_intune.flow.node import BaseNode


def elastic_graph(root: BaseNode[Any]) -> BaseNode[Any]:
    """`root`'s graph with ElasticMapper and ElasticPrefetcher for ParallelMapper, Mapper and Prefetcher.

    Functions, widths, methods and bounds stay; all other nodes stay themselves and are wired to the new
    ones, so the graph that was handed in is taken over. Works on any node that keeps its sources in
    attributes, or in lists, tuples or dicts there.
    """
    return _Rewiring().replaced(root)


@final
class _Rewiring:
    def __init__(self) -> None:
        self._done: dict[int, tuple[BaseNode[Any], BaseNode[Any]]] = {}  # the old node too: its id must stay its own

    def replaced(self, node: BaseNode[Any]) -> BaseNode[Any]:
        if id(node) in self._done:
            return self._done[id(node)][1]
        new = self._new(node)
        self._done[id(node)] = self._done[id(new)] = (node, new)
        return new

    def _new(self, node: BaseNode[Any]) -> BaseNode[Any]:
        if isinstance(node, ParallelMapper):
            return self._mapper(node)
        if isinstance(node, Prefetcher):
            every = max(1, node.snapshot_frequency)  # torchdata takes 0 for never
            return ElasticPrefetcher(self.replaced(node.source), node.prefetch_factor, every)
        for key, value in list(vars(node).items()):
            setattr(node, key, self._rewired(value))
        return node

    def _mapper(self, old: ParallelMapper[Any]) -> ElasticMapper[Any]:
        source, fn = old.source, old.map_fn
        if old.prebatch is not None:  # torchdata batches before it and unbatches behind
            source, fn = cast("Any", source).source, cast("MapOverBatch[Any, Any]", fn).map_fn
        return ElasticMapper(
            self.replaced(source),
            fn,
            old.num_workers,
            in_order=old.in_order,
            method=old.method,
            multiprocessing_context=old.multiprocessing_context,
            max_concurrent=old.max_concurrent,
            snapshot_frequency=max(1, old.snapshot_frequency),
            prebatch=old.prebatch,
        )

    def _rewired(self, value: Any) -> Any:
        if isinstance(value, BaseNode):
            return self.replaced(cast("BaseNode[Any]", value))
        members: Any = value.values() if isinstance(value, Mapping) else value
        if not isinstance(value, list | tuple | dict) or not any(isinstance(member, BaseNode) for member in members):
            return cast("Any", value)
        if isinstance(value, dict):
            return {key: self._rewired(member) for key, member in cast("dict[Any, Any]", value).items()}
        new_members = [self._rewired(member) for member in members]
        return new_members if isinstance(value, list) else tuple(new_members)
