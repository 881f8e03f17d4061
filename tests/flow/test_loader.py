"""The end of a graph: epochs, iterators, names, and whose state it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource


def same(item: Any) -> Any:
    return item


def test_two_stages_of_one_name_are_told_apart_by_the_loader() -> None:
    node = ElasticMapper(ElasticMapper(IterableSource(range(3)), same, 1), same, 1)
    with ElasticLoader(node) as loader:
        assert list(loader.stages) == ["same", "same-2"]
        assert [knob.stage for knob in loader.knobs] == ["same", "same-2"]


def test_a_loader_iterated_twice_before_the_first_item_begins_one_epoch() -> None:
    with ElasticLoader(IterableSource(range(3))) as loader:
        iter(loader)
        assert list(loader) == [0, 1, 2]
        assert loader.epoch == 0
        assert list(loader) == [0, 1, 2]
        assert loader.epoch == 1


def test_a_stale_iterator_says_so() -> None:
    with ElasticLoader(IterableSource(range(3))) as loader:
        first = iter(loader)
        next(first)
        iter(loader)
        with pytest.raises(RuntimeError, match="stale"):
            next(first)


def test_state_of_another_graph_or_version_is_refused_and_says_why() -> None:
    state = ElasticLoader(ElasticMapper(IterableSource(range(3)), same, 1)).state_dict()
    other = ElasticLoader(IterableSource(range(3)))
    with pytest.raises(
        ConfigError, match=r"belongs to the graph .*ElasticMapper:same.*this loader's is IterableSource"
    ):
        other.load_state_dict(state)
    with pytest.raises(ConfigError, match="version 99"):
        other.load_state_dict({**state, "version": 99})


def test_each_step_is_told_once_where_the_next_batch_is_asked_for_and_that_is_no_waiting_for_data() -> None:
    told: list[int] = []
    seconds = iter(range(100))
    loader = ElasticLoader(IterableSource(range(3)), clock=lambda: float(next(seconds)))

    def note() -> None:
        told.append(loader.stats().num_batches)

    with loader:
        loader.on_step = note
        assert list(loader) == [0, 1, 2]
        assert told == [1, 2, 3]
        list(loader)
        assert told == [1, 2, 3, 4, 5, 6]
        it = iter(loader)
        next(it)
        assert next(iter(loader)) == 0
        assert told == [1, 2, 3, 4, 5, 6, 7]  # an epoch that is left early: its last step is told of in the next
        assert loader.stats().wait_s == 8.0  # one tick of the clock for each batch; each `note` read it too
        assert copy.copy(loader).on_step is None
