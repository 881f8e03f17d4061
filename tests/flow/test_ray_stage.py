"""The same promises with the function in Ray actors, on a local cluster."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from itertools import islice

import pytest

from lightning_intune.flow import ElasticMapper, IterableSource
from tests.flow.graphs import triple

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its own future
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Ray keeps idle worker processes of its own until `ray.shutdown`: they are not a stage's to end."""


def test_resizing_actors_while_they_work_loses_and_repeats_nothing() -> None:
    node, out = ElasticMapper(IterableSource(range(150)), triple, 1, method="ray", max_workers=3), list[int]()
    for n in node:
        out.append(n)
        if len(out) % 30 == 0:
            node.resize(len(out) // 30 % 4)  # 1, 2, 3, 0, 1
    assert out == [3 * n for n in range(150)]


def test_a_run_resumes_from_threads_to_actors_and_back() -> None:
    rng, state, out = random.Random(3), None, list[int]()
    for method in ("ray", "thread", "ray"):
        node = ElasticMapper(IterableSource(range(90)), triple, 2, method=method)  # pyright: ignore[reportArgumentType]
        node.reset(state)
        out += islice(node, rng.randint(10, 25))
        state = node.state_dict()
        node.shutdown()
    node = ElasticMapper(IterableSource(range(90)), triple, 2)
    node.reset(state)
    assert out + list(node) == [3 * n for n in range(90)]


def test_a_killed_actor_costs_no_item() -> None:
    node, out = ElasticMapper(IterableSource(range(120)), triple, 2, method="ray", prebatch=1), list[int]()
    for n in node:
        out.append(n)
        if len(out) in (20, 60):
            node._run.crew.interrupt()  # pyright: ignore[reportOptionalMemberAccess] - kills the actors at work
    assert out == [3 * n for n in range(120)]
