"""Batches of near-equal cost on one rank."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.balance import BalancedBatcher, CostModel
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticMapper, IterableSource

SAMPLES = st.lists(st.integers(0, 40), max_size=50).map(lambda lengths: list(enumerate(lengths)))
SETTINGS = st.one_of(
    st.builds(
        lambda size, times: {"batch_size": size, "reservoir": size * times}, st.integers(1, 5), st.integers(1, 5)
    ),
    st.builds(lambda cost, size: {"max_cost": cost, "reservoir": size}, st.integers(1, 90), st.integers(1, 30)),
)


def batcher(samples: list[tuple[int, int]], settings: dict[str, Any]) -> BalancedBatcher[tuple[int, int]]:
    return BalancedBatcher(IterableSource(samples), length=lambda sample: sample[1], **settings)


@given(samples=SAMPLES, settings=SETTINGS)
def test_every_sample_comes_once_and_waits_no_longer_than_a_reservoir(
    samples: list[tuple[int, int]], settings: dict[str, Any]
) -> None:
    batches = list(batcher(samples, settings))
    flat = [sample for batch in batches for sample in batch]
    assert sorted(flat) == samples
    assert all(batches)
    assert all(abs(place - number) < settings["reservoir"] for place, (number, _) in enumerate(flat))
    if "batch_size" in settings:
        assert [len(batch) for batch in batches[:-1]] == [settings["batch_size"]] * (len(batches) - 1)
    else:
        assert all(len(b) == 1 or sum(s[1] for s in b) <= settings["max_cost"] for b in batches)


@given(samples=SAMPLES, settings=SETTINGS, cut=st.integers(0, 20))
def test_a_resumed_run_continues_as_if_never_stopped(
    samples: list[tuple[int, int]], settings: dict[str, Any], cut: int
) -> None:
    first, second = batcher(samples, settings), batcher(samples, settings)
    head = list(islice(first, cut))
    state = first.state_dict()
    assert len(pickle.dumps(state)) < 400  # whatever the position
    second.reset(pickle.loads(pickle.dumps(state)))
    assert head + list(second) == list(batcher(samples, settings))


def test_batches_cost_nearly_the_same() -> None:
    """Batches as they come differ by half in cost and more; those of a reservoir of 16 by under 1 %."""
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 2048).astype(int).tolist()
    cost = CostModel(linear=1.0, quadratic=0.01)
    batches = list(BalancedBatcher(IterableSource(lengths), length=int, batch_size=32, reservoir=512, cost=cost))
    costs = np.array([cost.batch_cost(batch) for batch in batches]).reshape(4, 16)
    assert (costs.max(axis=1) / costs.min(axis=1) < 1.01).all()
    plain = np.array([cost.batch_cost(lengths[i : i + 32]) for i in range(0, 2048, 32)])
    assert plain.max() / plain.min() > 1.5


def test_a_budget_is_used_well() -> None:
    """Batches within 1000 tokens of samples of 50 on average: nine tenths full in the mean."""
    lengths = np.random.default_rng(0).gamma(4, 12.5, 1000).astype(int).tolist()
    batches = list(BalancedBatcher(IterableSource(lengths), length=int, max_cost=1000.0, reservoir=500))
    tokens = [sum(batch) for batch in batches]
    assert max(tokens) <= 1000
    assert np.mean(tokens) > 900


def test_resizing_a_stage_upstream_changes_no_batch() -> None:
    def batches(width: int) -> list[list[int]]:
        stage = ElasticMapper(IterableSource(range(60)), lambda n: (n * 7) % 13, 1)
        node = BalancedBatcher(stage, length=int, batch_size=4)
        out: list[list[int]] = []
        for batch in node:
            stage.resize(width)
            out.append(batch)
        node.shutdown()
        return out

    assert batches(3) == batches(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "batch_size= or max_cost="),
        ({"batch_size": 2, "max_cost": 9.0}, "batch_size= or max_cost="),
        ({"batch_size": 0}, "batch_size=0 makes no batch"),
        ({"max_cost": 0.0}, "max_cost=0.0 admits no sample"),
        ({"batch_size": 8, "reservoir": 7}, "reservoir=7 holds less than a batch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batcher([], settings)


def test_a_state_of_another_reservoir_is_refused() -> None:
    node = batcher([(0, 1), (1, 2)], {"batch_size": 1, "reservoir": 2})
    next(node)
    with pytest.raises(ConfigError, match="is of reservoir=2, and here it is 1"):
        batcher([], {"batch_size": 1, "reservoir": 1}).reset(node.state_dict())
