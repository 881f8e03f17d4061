"""The same promises with the function in worker processes, through the stage as users have it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource
from lightning_intune.flow.lanes.lane import LaneDiedError
from tests.flow.graphs import resize_storm, triple


def process_id(_: int) -> int:
    return os.getpid()


def filled(n: int) -> np.ndarray:
    return np.full(5_000, n)


def fragile(n: int) -> int:
    if n == 5:
        raise KeyError("no fives")
    return n


def stop(n: int) -> int:
    if n == 3:
        raise StopIteration
    return n


def die_once(item: tuple[int, str]) -> int:
    number, marker = item
    if number == 7 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(n: int) -> int:
    if n == 4:
        os._exit(3)
    return n


@settings(max_examples=8)
@given(num_items=st.integers(0, 80), cut=st.integers(0, 90), widths=st.tuples(*[st.integers(0, 3)] * 2))
def test_a_resumed_run_continues_at_other_widths_and_lanes(num_items: int, cut: int, widths: tuple[int, int]) -> None:
    first = ElasticMapper(IterableSource(range(num_items)), triple, widths[0], method="process")
    head = list(islice(first, cut))
    state = first.state_dict()
    first.shutdown()
    second = ElasticMapper(IterableSource(range(num_items)), triple, widths[1])
    second.reset(state)
    assert head + list(second) == [3 * n for n in range(num_items)]


@settings(max_examples=5)
@given(num_items=st.integers(1, 120), in_order=st.booleans(), seed=st.integers(0, 999))
def test_resizing_processes_at_any_moment_loses_and_repeats_nothing(num_items: int, in_order: bool, seed: int) -> None:
    node = ElasticMapper(
        IterableSource(range(num_items)), triple, 1, method="process", in_order=in_order, max_workers=4
    )
    with resize_storm(node, seed):
        out = list(node)
    assert (out if in_order else sorted(out)) == [3 * n for n in range(num_items)]


def test_the_function_runs_in_as_many_other_processes_as_asked() -> None:
    node = ElasticMapper(IterableSource(range(200)), process_id, 2, method="process", prebatch=1)
    ids = set(node)
    assert os.getpid() not in ids
    assert 1 <= len(ids) <= 2


def test_kept_arrays_never_change_while_more_flow() -> None:
    kept = list(ElasticMapper(IterableSource(range(60)), filled, 2, method="process"))
    assert [(int(array.min()), int(array.max())) for array in kept] == [(n, n) for n in range(60)]


def test_a_killed_process_costs_no_item(tmp_path: Path) -> None:
    items = [(n, str(tmp_path / "died")) for n in range(30)]
    assert list(ElasticMapper(IterableSource(items), die_once, 2, method="process")) == list(range(30))
    assert (tmp_path / "died").exists()


def test_killing_workers_from_outside_again_and_again_costs_no_item() -> None:
    rng, out, num_killed, num_taken = random.Random(0), list[int](), 0, 0

    def source() -> Iterator[int]:
        nonlocal num_taken
        for num_taken in range(1, 601):
            yield num_taken - 1

    taken_at = deque([0, 0], maxlen=2)  # an item must not be there for three kills: that many it may cause itself
    node = ElasticMapper(IterableSource(source()), triple, 3, method="process", prebatch=1)
    for n in node:
        out.append(n)
        if len(out) % 20 == 0 and len(out) >= taken_at[0]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have gone between listing and killing
                workers = [process for process in psutil.Process().children(recursive=True) if not process.children()]
                if workers:  # all that were listed may have been the fork server, which has others by now
                    rng.choice(workers).kill()
                    num_killed += 1
            taken_at.append(num_taken)
    assert out == [3 * n for n in range(600)]
    assert num_killed > 5


def test_an_item_that_kills_every_process_is_named_after_a_bounded_number_of_tries() -> None:
    node, out = ElasticMapper(IterableSource(range(9)), always_die, 2, method="process", name="die"), list[int]()
    with pytest.raises(StageError, match=r"stage 'die': item 4 failed with LaneDiedError") as caught:
        out.extend(node)
    assert isinstance(caught.value, LaneDiedError)
    assert out == [0, 1, 2, 3]


def test_an_error_crosses_with_its_class_and_the_childs_traceback() -> None:
    node, out = ElasticMapper(IterableSource(range(9)), fragile, 2, method="process"), list[int]()
    with pytest.raises(KeyError, match=r"stage 'fragile': item 5 failed with KeyError") as caught:
        out.extend(node)
    assert out == [0, 1, 2, 3, 4]
    cause = caught.value.__cause__
    assert cause is not None
    assert "in fragile" in str(cause.__cause__)


def test_stop_iteration_in_a_process_is_a_failure_and_no_end() -> None:
    with pytest.raises(StageError, match="item 3 failed with StopIteration"):
        list(ElasticMapper(IterableSource(range(5)), stop, 1, method="process"))


def test_cpu_seconds_of_the_children_are_counted() -> None:
    node = ElasticMapper(IterableSource(range(40)), burn, 1, method="process")
    list(node)
    assert node.stats().cpu_s > 40 * 0.0005
    assert node.stats().lane == "process"


def burn(n: int) -> int:
    return n + sum(range(60_000)) * 0


def test_what_cannot_be_pickled_is_refused_at_construction() -> None:
    class Holder:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, n: int) -> int:
            return n

    with pytest.raises(ConfigError, match="pickle"):
        ElasticMapper(IterableSource([1]), Holder(), 1, method="process")


@settings(max_examples=5)
@given(num_items=st.integers(0, 80), cuts=st.lists(st.integers(0, 40), min_size=1, max_size=2))
def test_without_order_every_item_still_comes_exactly_once_over_resumes(num_items: int, cuts: list[int]) -> None:
    state, out = None, list[int]()
    for cut in [*cuts, None]:
        node = ElasticMapper(IterableSource(range(num_items)), triple, 2, method="process", in_order=False)
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        node.shutdown()
    assert sorted(out) == [3 * n for n in range(num_items)]


def hang_at_four(n: int) -> int:
    if n == 4:
        threading.Event().wait()
    return n


def test_a_process_that_hangs_is_reported_and_ended() -> None:
    node = ElasticMapper(
        IterableSource(range(9)), hang_at_four, 2, method="process", name="hang", timeout_s=1.0, prebatch=1
    )
    out: list[int] = []
    with pytest.raises(TimeoutError, match=r"stage 'hang': item 4 failed.*Raise timeout_s=1 if"):
        out.extend(node)
    assert out == [0, 1, 2, 3]  # and conftest's fixture sees that no process and no thread is left


def test_ctrl_c_over_stages_of_threads_and_processes_leaves_nothing_running() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def press(n: int) -> int:
        if n == 9 * 60:
            signal.pthread_kill(main, signal.SIGINT)
        return n

    node = ElasticMapper(IterableSource(range(10**6)), triple, 2, method="process")
    node = ElasticPrefetcher(ElasticMapper(ElasticMapper(node, triple, 2), press, 1), 4)
    with pytest.raises(KeyboardInterrupt), ElasticLoader(node) as loader:
        list(loader)
