"""Graphs in which other people's nodes stand between ours: nothing that goes through a graph ends at them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torchdata.nodes import BaseNode, Batcher, MultiNodeWeightedSampler, ParallelMapper, Unbatcher

from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, Node, Repeat
from lightning_intune.flow.node import walk


class Epochs(Node[int]):
    """Gives the number of its epoch, a few times."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        self.left = 2

    def next(self) -> int:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return self.epoch

    def get_state(self) -> Any:
        return {}


class Pair(BaseNode[Any]):
    """Somebody's node over two, which are in a tuple, under a name of their own."""

    def __init__(self, *nodes: BaseNode[Any]) -> None:
        super().__init__()
        self._nodes = nodes

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        for node in self._nodes:
            node.reset()

    def next(self) -> Any:
        return tuple([next(node) for node in self._nodes])

    def get_state(self) -> Any:
        return {}


def sampler(*nodes: BaseNode[Any]) -> BaseNode[Any]:
    names = [str(place) for place, _ in enumerate(nodes)]
    return MultiNodeWeightedSampler(dict(zip(names, nodes, strict=True)), dict.fromkeys(names, 1.0))


SHAPES: list[Any] = [
    lambda node: Unbatcher(Batcher(node, 2)),
    lambda node: ParallelMapper(node, int, 1),
    sampler,
    lambda node: ElasticMapper(Batcher(node, 1), max, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["source", "mapper", "dict", "between"])
def test_the_epoch_reaches_our_source_behind_foreign_nodes(shape: Any) -> None:
    with ElasticLoader(shape(Epochs())) as loader:
        assert [list(loader) for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]


def test_it_reaches_every_source_of_a_node_of_several() -> None:
    with ElasticLoader(Pair(Epochs(), Epochs())) as loader:
        assert [list(loader) for _ in range(2)] == [[(0, 0)] * 2, [(1, 1)] * 2]


def test_a_repeated_foreign_node_hears_of_every_pass() -> None:
    assert list(Repeat(Unbatcher(Batcher(Epochs(), 2)), 3)) == [0, 0, 1, 1, 2, 2]


def test_shutdown_and_the_loaders_stages_reach_through_them_too() -> None:
    left, right = (ElasticMapper(IterableSource(range(10**6)), int, 1, name=name) for name in ("left", "right"))
    with ElasticLoader(Pair(left, sampler(right))) as loader:
        next(iter(loader))
        assert list(loader.stages) == ["left", "right"]
    assert {thread.name for thread in threading.enumerate()} & {"left-0", "right-0"} == set()


def test_a_graph_is_known_again_after_it_has_run() -> None:
    """torchdata's mapper makes itself a node of its own at its first reset, which is no part of the graph."""
    loader = ElasticLoader(ParallelMapper(IterableSource(range(3)), int, 1))
    before = [type(node).__name__ for node in walk(loader.root)]
    state = loader.state_dict()
    assert list(loader) == [0, 1, 2]
    assert [type(node).__name__ for node in walk(loader.root)] == before == ["IterableSource", "ParallelMapper"]
    loader.load_state_dict(state)
    assert list(loader) == [0, 1, 2]
