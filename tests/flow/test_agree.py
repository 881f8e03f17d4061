"""Equal steps on every rank: over fake ranks in threads, and over gloo in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.dedup.jagged import Batch, KeyedJagged
from lightning_intune.flow import EqualSteps, Filter, IterableSource
from tests.flow.ranks import COUNTS, MODES, Line, Ranks, at, equal_steps, expected, item, on_all_ranks, source

ROOT = Path(__file__).resolve().parents[2]


@settings(max_examples=60)
@given(counts=COUNTS, mode=MODES, window=st.integers(1, 9))
def test_every_rank_has_as_many_steps_as_the_shortest_or_the_longest(counts: list[int], mode: str, window: int) -> None:
    if mode == "pad":
        counts = [max(1, count) for count in counts]
    num_steps = min(counts) if mode == "drop" else max(counts)
    outs = on_all_ranks(len(counts), lambda line: list(equal_steps(line, counts, mode, window)))
    assert outs == [expected(rank, count, num_steps) for rank, count in enumerate(counts)]


@settings(max_examples=60)
@given(
    counts=COUNTS,
    mode=MODES,
    windows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    cut=st.integers(0, 35),
    again=st.integers(0, 9),
)
def test_every_rank_resumes_from_rank_0s_state(
    counts: list[int], mode: str, windows: tuple[int, int], cut: int, again: int
) -> None:
    """Two cuts, so that a resumed run's state is put to the test too; the second run has windows of its own."""
    if mode == "pad":
        counts = [max(1, count) for count in counts]
    num_steps = min(counts) if mode == "drop" else max(counts)
    outs: list[list[str]] = [[] for _ in counts]
    state = None
    for length, window in ((cut, windows[0]), (again, windows[1]), (None, windows[0])):

        def run(line: Line, length: Any = length, window: int = window, state: Any = state) -> Any:
            node = equal_steps(line, counts, mode, window)
            node.reset(state)
            out = list(islice(node, length))
            saved = node.state_dict()
            node.shutdown()
            return out, saved

        results = on_all_ranks(len(counts), run)
        for out, (part, _) in zip(outs, results, strict=True):
            out += part
        state = results[0][1]
    assert outs == [expected(rank, count, num_steps) for rank, count in enumerate(counts)]


def test_state_is_known_without_asking_any_rank_and_is_the_same_on_all() -> None:
    ranks = Ranks(2)
    alone = EqualSteps(source(0, 9), communicator=Line(ranks, 0))
    assert alone.state_dict() == {
        "ranks": None,
        "skip": 0,
        "steps": 0,
        "length": None,
    }  # no gather: the other rank is not even there
    states = on_all_ranks(2, lambda line: at(equal_steps(line, [9, 9], "drop", 4), 5))
    assert states[0] == states[1]


def test_steps_wait_for_the_other_ranks_at_the_first_only() -> None:
    """A rank that has taken the first item of a window may take the others while another rank stands still."""
    ranks, reached, may_go_on = Ranks(2), threading.Event(), threading.Event()
    slow_out: list[str] = []

    def slow() -> None:
        node = equal_steps(Line(ranks, 1), [40, 40], "drop", 8)
        slow_out.extend(islice(node, 8))  # windows 1, 2, 4; the first of 8: it has begun agreeing on the next 8
        reached.set()
        may_go_on.wait(30)
        slow_out.extend(node)

    thread = threading.Thread(target=slow)
    thread.start()
    fast = equal_steps(Line(ranks, 0), [40, 40], "drop", 8)
    out = list(islice(fast, 8))
    reached.wait(30)
    out += islice(fast, 7)  # to the end of that window, though the other rank is asleep
    out += islice(fast, 8)  # and through the next, which both had begun to agree on
    assert len(out) == 23
    may_go_on.set()
    out += fast
    thread.join()
    assert len(out) == len(slow_out) == 40
    assert ranks.num_gathers == 8  # windows of 1, 2, 4, 8, 8, 8, 8 and the 1 that is left


def test_padding_a_batch_gives_its_samples_no_weight_and_leaves_the_batch_alone() -> None:
    def batch(first: int) -> Batch:
        sparse = KeyedJagged(["a"], torch.tensor([first, 1]), torch.tensor([1, 1], dtype=torch.int32))
        return Batch(dense=torch.ones(2, 1), sparse=sparse, labels=torch.ones(2, 1))

    def work(line: Line) -> Any:
        node = EqualSteps(IterableSource([batch(n) for n in range(1 + 2 * line.rank)]), mode="pad", communicator=line)
        return list(node)

    short, long = on_all_ranks(2, work)
    assert [None if b.weights is None else b.weights.tolist() for b in short] == [None, [0.0, 0.0], [0.0, 0.0]]
    assert [b.weights for b in long] == [None, None, None]
    assert short[2].sparse.values().tolist() == [0, 1]


def test_an_epoch_begun_anew_in_the_middle_lets_the_window_under_way_end_first() -> None:
    def work(line: Line) -> Any:
        node = equal_steps(line, [20, 17], "drop", 4)
        list(islice(node, 5))
        node.reset()
        return list(node)

    assert on_all_ranks(2, work) == [[item(rank, n) for n in range(17)] for rank in range(2)]


def test_one_rank_alone_passes_items_through_and_resumes_exactly() -> None:
    def make() -> EqualSteps[int]:
        return EqualSteps(Filter(IterableSource(range(20)), lambda n: n % 3 > 0))

    node, other = make(), make()
    head = list(islice(node, 4))
    other.reset(node.state_dict())
    assert head + list(other) == [n for n in range(20) if n % 3 > 0]


def test_two_processes_agree_over_gloo_beside_the_trainings_collectives(tmp_path: Path) -> None:
    """Rank r has 10 + 3r items; two loaders (train, validation) agree at the same time, each in a group of its own."""
    script = Path(__file__).with_name("gloo_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", str(script), str(rank), "2", str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=90) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first["drop"] == [[0, n] for n in range(10)]
    assert second["drop"] == [[1, n] for n in range(10)]
    assert first["pad"] == [*([0, n] for n in range(10)), *[[-1, -1]] * 3]
    assert second["pad"] == [[1, n] for n in range(13)]
    assert first["known"] == [13, *first["pad"]]
    assert second["known"] == [13, *second["pad"]]
    assert first["resumed"] == [[0, n] for n in range(6, 10)]
    assert second["resumed"] == [[1, n] for n in range(6, 10)]
