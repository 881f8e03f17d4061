"""Beginning anew in the middle of a pass: who is waited for, how long, and how that wait is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest

from lightning_intune.flow import ElasticMapper, ElasticPrefetcher, IterableSource, Node, Repeat


def same(item: Any) -> Any:
    return item


def patient(node: Any, join_s: float) -> Any:
    """`node`, waiting `join_s` for its workers."""
    object.__setattr__(node._plan, "join_s", join_s)
    return node


class Stuck(Node[int]):
    """0, 1, 2, ... whose item `at` does not come before `release`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.reached, self.freed = at, threading.Event(), threading.Event()

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        self.number = 0 if initial_state is None else initial_state["number"]

    def next(self) -> int:
        if self.number == self.at:
            self.reached.set()
            assert self.freed.wait(60)
        if self.number == 9:
            raise StopIteration
        self.number += 1
        return self.number - 1

    def get_state(self) -> Any:
        return {"number": self.number}


@contextmanager
def ended(*nodes: Any) -> Iterator[None]:
    """No thread of `nodes` outlives the block, late ones included."""
    try:
        yield
    finally:
        for node in nodes:
            node.shutdown()
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(10)


def test_a_worker_that_waits_for_a_stage_upstream_is_let_go_at_once() -> None:
    at_work, release = threading.Event(), threading.Event()

    def slow(n: int) -> int:
        if n == 1 and not release.is_set():
            at_work.set()
            assert release.wait(60)
        return n

    up = patient(ElasticMapper(IterableSource(range(9)), slow, 1, name="up"), 0.0)
    down = patient(ElasticMapper(ElasticPrefetcher(up, 2), same, 1, name="down"), 0.5)
    with ended(down):
        assert next(down) == 0
        at_work.wait(60)
        with pytest.warns(ResourceWarning) as told:
            down.reset()
        assert {str(one.message).split(":")[0] for one in told} == {"stage 'up'"}  # all others left in time
        release.set()
        assert list(down) == list(range(9))


def test_a_source_that_does_not_come_back_is_not_pulled_by_a_second_thread() -> None:
    source = Stuck(2)
    node = patient(ElasticMapper(source, same, 2, name="reader"), 0.05)
    with ended(node):
        assert [next(node), next(node)] == [0, 1]
        source.reached.wait(60)
        with (
            pytest.warns(ResourceWarning, match="left behind"),
            pytest.raises(RuntimeError, match=r"stage 'reader': its source has not come back .* Reset again once"),
        ):
            node.reset()
        source.freed.set()
        patient(node, 60).reset()
        assert list(node) == list(range(9))


@pytest.mark.parametrize("how", ["reset", "shutdown"])
def test_ctrl_c_ends_the_wait_for_a_function_that_blocks(how: str) -> None:
    at_work, release = threading.Event(), threading.Event()

    def block(n: int) -> int:
        if n == 1 and not release.is_set():
            at_work.set()
            assert release.wait(60)
        return n

    node = patient(ElasticMapper(IterableSource(range(5)), block, 1), 60)
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        assert node._run is not None
        while not node._run.gate.is_closing:
            time.sleep(0.001)  # what is waited for is the main thread's way into its wait
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    with ended(node):
        assert next(node) == 0
        at_work.wait(60)
        pressing = threading.Thread(target=press)
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            getattr(node, how)()
        pressing.join()
        assert not release.is_set()
        release.set()
        node.reset()
        assert list(node) == list(range(5))


def hang_on_1(n: int) -> int:
    if n == 1 and not os.path.exists(os.environ["HANG_NO_MORE"]):
        open(os.environ["HANG_NO_MORE"], "w").close()
        time.sleep(600)
    return n


def test_a_process_that_hangs_is_killed_and_its_item_comes_in_the_new_pass(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANG_NO_MORE", str(tmp_path / "hung"))
    node = ElasticMapper(IterableSource(range(5)), hang_on_1, 1, method="process")
    with ended(node):
        assert next(node) == 0
        while not (tmp_path / "hung").exists():
            time.sleep(0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is left behind, which would be warned of
            node.reset()
        assert list(node) == list(range(5))


FORKING = """
import os, signal, threading
from lightning_intune.flow import ElasticMapper, IterableSource

node = ElasticMapper(IterableSource(range(100)), abs, 2)
next(node)
held, go = threading.Event(), threading.Event()
def turn():
    with node._turning:  # somebody is turning the knob
        held.set()
        go.wait(60)
turning = threading.Thread(target=turn)
turning.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    node.resize(3)
    node.reset()
    os._exit(7 if list(node) == list(range(100)) else 1)
go.set()
turning.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
node.shutdown()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_knob_that_was_being_turned_at_a_fork_can_be_turned_in_the_child() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], check=True, timeout=60)


class SlowToBegin(IterableSource[int]):
    """0 to 999, whose passes after the first do not begin before `may_begin`."""

    def __init__(self) -> None:
        super().__init__(range(1000))
        self.num_passes, self.is_reset, self.may_begin = 0, threading.Event(), threading.Event()

    def reset(self, initial_state: Any = None) -> None:
        self.num_passes += 1
        if self.num_passes > 1:
            self.is_reset.set()
            assert self.may_begin.wait(60)
        super().reset(initial_state)


def test_a_pass_that_begins_upstream_while_all_is_shut_down_is_shut_down_too(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SlowToBegin()
    upstream = ElasticMapper(source, same, 2, name="upstream")
    stage = ElasticPrefetcher(Repeat(upstream, 3), 8)
    before = set(threading.enumerate())
    assert list(islice(stage, 999)) == list(range(999))
    assert source.is_reset.wait(60)  # the prefetcher's worker is in the source, between two passes
    join = stage._run.crew.join  # pyright: ignore[reportOptionalMemberAccess, reportPrivateUsage]

    def late() -> None:  # upstream has been shut down by now
        source.may_begin.set()
        join()

    monkeypatch.setattr(stage._run.crew, "join", late)  # pyright: ignore[reportOptionalMemberAccess, reportPrivateUsage]
    stage.shutdown()
    assert set(threading.enumerate()) <= before
