"""What fails in a lane: the function, what it takes and gives, and the process itself. Nothing else is lost."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.flow.lanes import Lane, LaneDiedError, forking, start
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.lanes.lane import LaneDiedIdleError
from lightning_intune.flow.lanes.process import ProcessLanePool
from lightning_intune.flow.lanes.process_lane import ProcessLane
from lightning_intune.flow.lanes.reducers import UnpicklableError
from lightning_intune.flow.lanes.server import FORK
from tests.lanes import functions
from tests.lanes.opened import one_lane, wait_for


@pytest.fixture
def lane(request: pytest.FixtureRequest) -> Iterator[ProcessLane]:
    with one_lane(request.param) as lane:
        yield lane


# ---- failures of the function ----


@pytest.mark.parametrize("lane", [functions.raises], indirect=True, ids=["raises"])
def test_an_error_comes_back_as_itself_with_the_traceback_of_the_worker(lane: Lane) -> None:
    value_error, stop, interrupt, chain = lane.run(["plain", "stop", "interrupt", "chain"])
    assert isinstance(value_error.error, ValueError)
    assert value_error.error.args == ("plain",)
    assert "functions.py" in str(value_error.error.__cause__)
    assert "raise ValueError(item)" in str(value_error.error.__cause__)
    assert isinstance(stop.error, StopIteration)
    assert isinstance(interrupt.error, KeyboardInterrupt)
    assert "invalid literal for int()" in str(chain.error.__cause__)  # the first of a chain is told too


@pytest.mark.parametrize("lane", [functions.raises], indirect=True, ids=["raises"])
def test_an_error_that_would_not_unpickle_is_told_by_name(lane: Lane) -> None:
    (failed,) = lane.run(["two"])
    assert isinstance(failed.error, UnpicklableError)
    assert "NeedsTwoError: 1 and 2" in str(failed.error)
    assert "functions.py" in str(failed.error.__cause__)


@pytest.mark.parametrize("lane", [functions.returns], indirect=True, ids=["returns"])
def test_a_result_that_cannot_cross_fails_alone(lane: Lane) -> None:
    first, lock, unwanted, last = lane.run(["first", "lock", "unwanted", "last"])
    assert (first, last) == ("first", "last")
    assert "cannot leave the worker process" in str(lock.error)
    assert "not here" in str(unwanted.error)
    assert lane.run(["again"]) == ["again"]


@pytest.mark.parametrize("lane", [functions.same], indirect=True, ids=["same"])
def test_an_item_that_cannot_cross_fails_alone(lane: Lane) -> None:
    first, lock, unwanted, last = lane.run([1, threading.Lock(), functions.Unwanted(), 4])
    assert (first, last) == (1, 4)
    assert isinstance(lock.error, UnpicklableError)
    assert "not here" in str(unwanted.error)


@pytest.mark.parametrize("lane", [functions.sometimes_fails], indirect=True, ids=["sometimes_fails"])
def test_outcomes_stand_where_their_items_stood(lane: Lane) -> None:
    outcomes = lane.run(list(range(10)))
    assert [outcome if isinstance(outcome, int) else outcome.error.args for outcome in outcomes] == [
        (0,), 1, 2, (3,), 4, 5, (6,), 7, 8, (9,),
    ]  # fmt: skip


@pytest.mark.parametrize("lane", [functions.burns], indirect=True, ids=["burns"])
def test_the_cpu_seconds_of_the_function_are_told_and_those_of_the_start_are_not(lane: Lane) -> None:
    assert lane.cpu_s == 0.0
    lane.run([0.05])
    assert 0.05 <= lane.cpu_s < 0.5
    before_s = lane.cpu_s
    lane.run([0.02, 0.02])
    assert lane.cpu_s - before_s >= 0.04


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count run delay")
@pytest.mark.parametrize("lane", [functions.burns], indirect=True, ids=["burns"])
def test_the_time_a_process_is_runnable_without_a_core_is_told(lane: ProcessLane) -> None:
    one, is_over = {min(os.sched_getaffinity(0))}, threading.Event()
    os.sched_setaffinity(lane.pid, one)

    def spin() -> None:
        os.sched_setaffinity(0, one)  # this thread's alone
        while not is_over.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        lane.run([0.1])
    finally:
        is_over.set()
        thread.join()
    assert 0.01 < lane.run_delay_s <= lane.fn_s - lane.cpu_s + 0.05


# ---- death ----


@pytest.mark.parametrize(
    ("item", "how"),
    [
        pytest.param("exit", "exited with status 3", id="os._exit"),
        pytest.param("sys.exit", "exited with status 4", id="sys.exit"),
        pytest.param("kill", "was killed by SIGKILL", id="kill -9"),
    ],
)
@pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_death_is_told_with_its_cause(item: str, how: str, context: str) -> None:
    with one_lane(functions.dies, context=context) as lane:
        assert lane.run(["fine"]) == ["fine"]
        with pytest.raises(LaneDiedError, match=how):
            lane.run(["fine", item])
        with pytest.raises(LaneDiedError):
            lane.run(["fine"])


@pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_bytes", [1, 30_000, 2_000_000])  # in the message itself, or in a slot of its own
@pytest.mark.parametrize("dies_first", [True, False])
def test_a_process_that_died_before_it_read_the_items_is_told_apart(
    context: str, num_bytes: int, dies_first: bool
) -> None:
    with one_lane(functions.dies, context=context) as lane:
        assert lane.run(["fine"]) == ["fine"]
        os.kill(lane.pid, signal.SIGKILL if dies_first else signal.SIGSTOP)
        while not dies_first and psutil.Process(lane.pid).status() != psutil.STATUS_STOPPED:
            os.sched_yield()  # it may still read what comes before it stops

        def kill_when_sent() -> None:
            while not num_unread_bytes(lane):
                os.sched_yield()
            os.kill(lane.pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_when_sent)
        if not dies_first:
            killer.start()
        while dies_first and lane.is_alive:
            os.sched_yield()
        with pytest.raises(LaneDiedIdleError, match=r"SIGKILL .* before it had read the item"):
            lane.run(["f" * num_bytes, "kill"])
        if not dies_first:
            killer.join()
    with one_lane(functions.dies, context=context) as lane, pytest.raises(LaneDiedError, match="at work") as caught:
        lane.run(["f" * num_bytes, "kill"])
    assert type(caught.value) is LaneDiedError


def num_unread_bytes(lane: ProcessLane) -> int:
    """Of what was sent to its process."""
    return int(struct.unpack("i", fcntl.ioctl(lane._channel._fd, termios.TIOCOUTQ, bytes(4)))[0])


def test_a_death_is_seen_though_a_grandchild_holds_the_socket() -> None:
    before = set(psutil.process_iter())
    with one_lane(functions.dies) as lane, pytest.raises(LaneDiedError, match="status 5"):
        lane.run(["orphan"])
    for process in set(psutil.process_iter()) - before:
        if process.is_running() and process.name() == "sleep":
            process.kill()


@pytest.mark.parametrize("fn", [functions.waits, functions.spins])
def test_kill_from_another_thread_ends_a_running_call(fn: Callable[[Any], Any], tmp_path: Path) -> None:
    with one_lane(fn) as lane:

        def kill_when_busy() -> None:
            wait_for(tmp_path / "busy")
            lane.kill()

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        with pytest.raises(LaneDiedError):
            lane.run([str(tmp_path / "busy")])
        killer.join()
        lane.kill()  # harmless when repeated
    lane.kill()  # and after close


@given(deaths=st.sets(st.integers(0, 39), max_size=4), chunk=st.integers(1, 9))
@settings(max_examples=6)
def test_kills_at_random_points_lose_nothing_once_the_caller_retries(
    tmp_path_factory: pytest.TempPathFactory, deaths: set[int], chunk: int
) -> None:
    marks = tmp_path_factory.mktemp("marks")
    items = [(value, str(marks / str(value)) if value in deaths else None) for value in range(40)]
    pool = ProcessLanePool(functions.dies_once, name="stage")
    lane, out, num_deaths = pool.open(), list[int](), 0
    while len(out) < len(items):
        try:
            out += lane.run(items[len(out) : len(out) + chunk])
        except LaneDiedError:
            num_deaths += 1
            lane.close()
            lane = pool.open()
    lane.close()
    pool.close()
    assert out == list(range(40))
    assert num_deaths == len(deaths)


def test_a_fork_server_killed_between_its_fork_and_its_answer_leaves_nobody_on_the_next_ones_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, was_lost, make_pair, request = [], [], start.socket_pair, forking._Server.request

    def pair() -> Any:
        pairs.append(make_pair())
        return pairs[-1]

    def lost(server: Any, what: str, *others: Any) -> Any:
        answer = request(server, what, *others)
        if what == FORK and not was_lost:
            was_lost.append(server.pid)
            select.select([pairs[0][0]], [], [])  # its child has said that it is ready
            os.kill(server.pid, signal.SIGKILL)
            raise ConnectionResetError("the fork server is gone")
        return answer

    with one_lane(functions.double):
        """Now there is a server."""
    monkeypatch.setattr(start, "socket_pair", pair)
    monkeypatch.setattr(forking._Server, "request", lost)
    with one_lane(functions.double) as lane:
        assert lane.run([21]) == [42]
        assert was_lost


@pytest.mark.slow
def test_the_fork_server_may_be_killed_and_the_next_lane_opens() -> None:
    with one_lane(functions.double) as lane:
        (before,) = FORK_SERVER.pids
        os.kill(before, signal.SIGKILL)
        died = None
        while died is None:  # the kernel kills the worker when its server has ended, which takes its time
            try:
                lane.run([1])
            except LaneDiedError as error:
                died = error
    with one_lane(functions.double) as lane:
        assert lane.run([21]) == [42]
        assert before not in FORK_SERVER.pids
