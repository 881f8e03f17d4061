"""Lanes leave nothing behind: no process, thread or descriptor, however they or their parent end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest

from lightning_intune.flow.lanes import LaneDiedError
from lightning_intune.flow.lanes.process import ProcessLanePool
from tests.lanes import functions
from tests.lanes.opened import one_lane, wait_for


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that waits for init to reap it does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- leaks, and the parent's end ----


@pytest.mark.parametrize(
    ("context", "num_lanes"), [("forkserver", 3), pytest.param("spawn", 2, marks=pytest.mark.slow)]
)
def test_nothing_is_left_after_close(context: str, num_lanes: int) -> None:
    def cycle(fail: bool) -> None:
        pool = ProcessLanePool(functions.dies, name="stage", context=context)
        lanes = [pool.open() for _ in range(num_lanes)]
        for lane in lanes:
            lane.run(["fine", np.ones(100_000)])
        if fail:
            with pytest.raises(LaneDiedError):
                lanes[0].run(["kill"])
        for lane in lanes:
            lane.close()
            lane.close()
        pool.close()
        pool.close()

    cycle(fail=False)
    gc.collect()
    before = descriptors()
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    for fail in (False, True):
        cycle(fail)
    gc.collect()
    assert descriptors() == before
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children
    assert not [thread for thread in threading.enumerate() if "spare" in thread.name]


def test_a_dropped_pool_and_lane_end_their_processes() -> None:
    pool = ProcessLanePool(functions.whereabouts, name="stage")
    lane = pool.open()
    (pid,) = lane.run(["pid"])
    del pool, lane
    gc.collect()
    assert not psutil.pid_exists(pid)


def test_a_closed_pool_opens_again() -> None:
    pool = ProcessLanePool(functions.double, name="stage")
    for _ in range(2):
        lane = pool.open()
        assert lane.run([4]) == [8]
        lane.close()
        pool.close()


def test_a_pool_travels_as_its_settings() -> None:
    import pickle

    pool = ProcessLanePool(functions.double, name="stage", keep_spare=False)
    twin = pickle.loads(pickle.dumps(pool))
    with_twin = twin.open()
    assert with_twin.run([4]) == [8]
    with_twin.close()


PARENT = """
import sys
from lightning_intune.flow.lanes.process import ProcessLanePool
from tests.lanes import functions

pool = ProcessLanePool(getattr(functions, sys.argv[1]), name="stage", context=sys.argv[3] or None)
pool.open().run([sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("fn", "context", "sent"),
    [
        pytest.param("waits", "forkserver", signal.SIGINT, id="Ctrl-C"),
        pytest.param("spins", "forkserver", signal.SIGKILL, id="kill -9 while a C call holds the GIL"),
        pytest.param("waits", "spawn", signal.SIGKILL, id="kill -9, spawn"),
        pytest.param("waits", "fork", signal.SIGKILL, id="kill -9, fork"),
        pytest.param("waits", "forkserver", signal.SIGTERM, id="terminated", marks=pytest.mark.slow),
        pytest.param("waits", "spawn", signal.SIGINT, id="Ctrl-C, spawn", marks=pytest.mark.slow),
        pytest.param("waits", "fork", signal.SIGINT, id="Ctrl-C, fork", marks=pytest.mark.slow),
        pytest.param("spins", "forkserver", signal.SIGINT, id="Ctrl-C in a C call", marks=pytest.mark.slow),
    ],
)
def test_workers_never_outlive_the_parent(fn: str, context: str, sent: signal.Signals, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(PARENT), fn, str(tmp_path / "busy"), context]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as parent:
        worker = psutil.Process(wait_for(tmp_path / "busy"))
        family = psutil.Process(parent.pid).children(recursive=True)
        assert worker in family
        os.killpg(parent.pid, sent) if sent == signal.SIGINT else parent.send_signal(sent)  # Ctrl-C goes to the group
        parent.wait()
        assert parent.stderr is not None
        errors = parent.stderr.read().decode()
    while any(is_alive(process) for process in family):  # pytest's timeout bounds it
        os.sched_yield()
    if sent == signal.SIGINT:  # the parent's own and no worker's, wherever it was: it may have been handling another
        assert errors.count("\nKeyboardInterrupt") == 1, errors
    else:
        assert "Traceback" not in errors, errors


def test_a_copy_of_the_parent_made_by_fork_neither_kills_nor_keeps_its_workers() -> None:
    with one_lane(functions.double) as lane:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            lane.kill()
            gc.collect()
            signal.pause()
            os._exit(0)
        try:
            assert lane.run([4]) == [8]
            lane.close()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not psutil.pid_exists(lane.pid)
