"""The same promises with the function in Ray actors, on a local cluster."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from lightning_intune.flow import ElasticMapper, IterableSource, OnError, retry
from tests.flow.graphs import passes, picky, triple

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


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


def test_what_fails_in_actors_is_tried_again_skipped_and_counted_over_a_resume() -> None:
    state, out = None, list[int]()
    for cut in (30, None):
        policy = retry(1, 0.0, then=OnError(skip=True, max_share=1.0))
        node = ElasticMapper(IterableSource(range(90)), picky, 2, method="ray", on_error=policy)
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert state is not None
    assert out == [n for n in range(90) if passes(n)]
    assert state["skipped"] == 90 - len(out)
