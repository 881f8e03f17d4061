"""What a review of the engine found, each as the case that showed it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torchdata.nodes import IterableWrapper

from lightning_intune.errors import ConfigError, StageError, stage_error
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, Node
from lightning_intune.flow.node import StoppedError
from lightning_intune.flow.sizes import item_nbytes


def same(item: Any) -> Any:
    return item


def test_an_item_of_no_bytes_makes_room_for_the_next_in_line() -> None:
    later_done = threading.Event()

    def grow(n: int) -> Any:
        if n == 0:
            later_done.wait(5)
            return []  # measured as 0 bytes
        later_done.set()
        return bytes(1000)

    assert len(list(ElasticMapper(IterableSource(range(6)), grow, 3, max_bytes=10))) == 6


def test_the_consumer_never_waits_for_room_that_only_it_can_make() -> None:
    other_done = threading.Event()

    def widen(n: int) -> Any:
        if n == 0:  # in the consumer's own thread, at width 0
            node.resize(1)
            other_done.wait(5)
            while node.stats().num_ready == 0:
                pass
        other_done.set()
        return bytes(1000)

    node = ElasticMapper(IterableSource(range(4)), widen, 0, in_order=False, max_bytes=10)
    assert len(list(node)) == 4


def test_a_hanging_function_is_reported_however_often_somebody_resizes() -> None:
    release, stop = threading.Event(), threading.Event()

    def hang(n: int) -> int:
        if n == 2:
            release.wait(10)
        return n

    node = ElasticMapper(IterableSource(range(5)), hang, 2, timeout_s=0.5)
    object.__setattr__(node._plan, "join_s", 0.0)

    def turn() -> None:
        width = 2
        while not stop.wait(0.01):
            width = 5 - width
            node.resize(width)

    storm = threading.Thread(target=turn)
    storm.start()
    try:
        with pytest.raises(TimeoutError), pytest.warns(ResourceWarning):
            list(node)
        assert not release.is_set()
    finally:
        stop.set()
        storm.join()
        release.set()


def test_ctrl_c_within_a_source_at_width_0_is_ctrl_c() -> None:
    def numbers() -> Any:
        for n in range(100):
            if n == 5:
                signal.raise_signal(signal.SIGINT)
            yield n

    with pytest.raises(KeyboardInterrupt):
        list(ElasticMapper(IterableWrapper(numbers()), same, 0))


FORKING = """
import os, signal
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from lightning_intune.flow.node import StoppedError

loader = ElasticLoader(ElasticMapper(IterableSource(range(10_000)), abs, 2))
it = iter(loader)
next(it)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    try:
        list(it)
    except StoppedError as error:
        assert "threads do not cross a fork" in str(error)
        assert loader.stats().stages[0].num_items > 0
        os._exit(7 if list(loader) == list(range(10_000)) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert len(list(it)) == 9_999
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_running_stage_says_in_a_forked_child_that_it_does_not_run_there() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=60)


FORKING_IN_THE_SOURCE = """
import os, signal, threading
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource

parent, inside, goes_on = os.getpid(), threading.Event(), threading.Event()

class Source:
    def __iter__(self):
        for number in range(100):
            if number == 1 and os.getpid() == parent:
                inside.set()
                goes_on.wait()
            yield number

loader = ElasticLoader(ElasticMapper(IterableSource(Source()), abs, 1))
it = iter(loader)
next(it)
assert inside.wait(20)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    os._exit(7 if list(loader) == list(range(100)) else 1)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
goes_on.set()
assert status == 7, status
assert len(list(it)) == 99
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_a_worker_is_in_the_source_leaves_the_child_free_to_begin_anew() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING_IN_THE_SOURCE], check=True, timeout=60)


def test_several_threads_may_share_a_stage() -> None:
    node, out = ElasticMapper(IterableSource(range(2000)), same, 3), list[int]()
    out.append(next(node))
    threads = [threading.Thread(target=lambda: out.extend(node)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(out) == list(range(2000))


class NoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class PickyError(Exception):
    def __new__(cls, number: int) -> PickyError:
        if not isinstance(number, int):
            raise ValueError("a number is wanted")  # noqa: TRY004 - that is what is picky about it
        return super().__new__(cls)


class TakenError(Exception):
    @property
    def item(self) -> str:
        return "mine"


class FrozenError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class ClosedError(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no subclasses")


@pytest.mark.parametrize(
    "cause",
    [
        NoTextError(),
        PickyError(1),
        TakenError(),
        FrozenError(),
        ClosedError(),
        ExceptionGroup("two", [ValueError(), KeyError()]),
    ],
)
@pytest.mark.parametrize("width", [0, 2])
def test_an_exception_of_any_class_is_reported_with_its_stage_and_item(cause: Exception, width: int) -> None:
    def fail(n: int) -> int:
        if n == 3:
            raise cause
        return n

    out: list[int] = []
    with pytest.raises(StageError, match=f"stage 'fail': item 3 failed with {type(cause).__name__}: ") as caught:
        out.extend(ElasticMapper(IterableSource(range(6)), fail, width))
    assert out == [0, 1, 2]
    assert caught.value.__cause__ is cause
    assert (caught.value.stage, caught.value.item) == ("fail", 3)


def test_an_error_whose_text_cannot_be_had_says_so() -> None:
    assert "its text cannot be had: RuntimeError" in str(stage_error("s", 1, NoTextError()))


class Unmeasurable:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("not now")

    def __sizeof__(self) -> int:
        raise RuntimeError("nor this")

    def __len__(self) -> int:
        raise RuntimeError("nor that")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("least of all")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "make",
    [
        Unmeasurable,
        lambda: [Unmeasurable(), np.zeros(3)],
        lambda: torch.eye(3).to_sparse(),
        lambda: np.array(3.0),
    ],
    ids=["alone", "in a list", "sparse", "0-d"],
)
@pytest.mark.parametrize("max_bytes", [None, 1000])
def test_an_item_that_cannot_be_measured_or_counted_is_an_item(make: Any, max_bytes: int | None) -> None:
    with ElasticLoader(ElasticMapper(IterableSource(range(70)), lambda _: make(), 2, max_bytes=max_bytes)) as loader:
        assert len(list(loader)) == 70


def test_a_sparse_tensor_is_measured_by_its_parts() -> None:
    assert item_nbytes([torch.eye(3).to_sparse()]) == 2 * 3 * 8 + 3 * 4


def test_a_source_that_could_not_be_reset_says_why_each_time() -> None:
    class Missing(Node[int]):
        def reset(self, initial_state: Any = None) -> None:
            super().reset(initial_state)
            raise OSError("no such file")

    node = ElasticMapper(Missing(), same, 2)
    for _ in range(2):
        with pytest.raises(OSError, match="no such file"):
            next(node)


@pytest.mark.parametrize("error", [None, OSError("disk gone")])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("width", [0, 2])
def test_a_source_that_ends_or_fails_before_the_resumed_position_is_an_error(
    error: Exception | None, in_order: bool, width: int
) -> None:
    def fewer() -> Any:
        yield from range(20)
        if error is not None:
            raise error

    class Source(Node[int]):
        def reset(self, initial_state: Any = None) -> None:
            super().reset(initial_state)
            self._it = fewer()

        def next(self) -> int:
            return next(self._it)

        def get_state(self) -> Any:
            return {}

    node = ElasticMapper(Source(), same, width, in_order=in_order)
    node.reset({"source": None, "position": 0, "skip": 50, "done": [[51, 53]]})
    with pytest.raises(
        ConfigError if error is None else OSError, match="its data has changed" if error is None else "disk"
    ):
        list(node)


def test_a_shut_down_chain_says_so_and_blames_no_item() -> None:
    at_work, release = threading.Event(), threading.Event()

    def wait(n: int) -> int:
        if n == 1:
            at_work.set()
            release.wait(10)
        return n

    node = ElasticMapper(ElasticMapper(IterableSource(range(9)), wait, 1, name="up"), same, 2, name="down")
    next(node)
    at_work.wait(10)
    threading.Timer(0.05, release.set).start()
    node.shutdown()
    with pytest.raises(StoppedError, match="stage 'down' was shut down"):
        list(node)


def test_workers_are_live_when_their_lanes_are() -> None:
    node = ElasticMapper(IterableSource(range(1000)), abs, 1, method="process")
    next(node)
    node.resize(3)
    run = node._run
    assert run is not None
    with run._lock:  # nobody comes or goes in here, but a lane may open
        before = sum(worker.lane is not None for worker in run._workers)
        live = node.stats().live_workers
        assert before <= live <= sum(worker.lane is not None for worker in run._workers)
    node.shutdown()


@pytest.mark.parametrize("width", [2.5, None, "3"])
def test_a_width_that_is_no_whole_number_is_refused(width: Any) -> None:
    with pytest.raises(ConfigError, match="is no whole number"):
        ElasticMapper(IterableSource([]), same, width)
