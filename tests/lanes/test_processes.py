"""Worker processes: what they are like, and which functions reach them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes import open_pool
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.lanes.process import ProcessLanePool
from tests.lanes import functions
from tests.lanes.opened import one_lane

# ---- what a worker process is like ----


@pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_is_a_good_guest(context: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LANES_TEST", "told")
    monkeypatch.chdir(tmp_path)
    FORK_SERVER.close()  # one serves the whole interpreter: an earlier test may have had it import more
    with one_lane(functions.whereabouts, context=context) as lane:
        modules, num_threads, ignores, told, cwd = lane.run(["modules", "torch threads", "sigint", "environ", "cwd"])
    assert "torch" in modules
    assert "lightning" not in modules
    assert "torchdata" not in modules
    assert (num_threads, ignores, told, cwd) == (1, True, "told", str(tmp_path))


@pytest.mark.parametrize(("ours", "theirs"), [(None, "1"), ("0", "0")])
def test_tensors_lie_on_huge_pages_unless_the_user_says_otherwise(
    ours: str | None, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if ours is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", ours)
    with one_lane(functions.whereabouts) as lane:
        assert lane.run(["huge pages"]) == [theirs]


@pytest.mark.parametrize(("ours", "theirs"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_allocates_with_malloc_unless_the_user_says_otherwise(
    ours: str | None, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    if ours is not None:
        monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", ours)
    FORK_SERVER.close()  # it may have Arrow loaded already
    with one_lane(functions.whereabouts) as lane:
        assert lane.run(["arrow pool"]) == [theirs]


def test_growing_takes_the_warm_spare_and_warms_another() -> None:
    pool = ProcessLanePool(functions.whereabouts, name="stage")
    lanes = []
    for _ in range(3):
        while not pool.is_warm:
            os.sched_yield()
        here = {child.pid for child in psutil.Process().children(recursive=True)}
        lanes.append(pool.open())
        assert lanes[-1].pid in here
    for lane in lanes:
        lane.close()
    pool.close()


def test_a_module_that_imports_arrow_is_imported_ahead() -> None:
    before = FORK_SERVER.pids
    with one_lane(functions.imports_arrow) as lane:
        assert lane.run([None]) == [True]
    assert len(FORK_SERVER.pids) == max(1, len(before))  # no server was retired for Arrow's thread


def test_a_module_that_starts_threads_is_not_imported_before_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()

def double(item):
    return item * 2
"""
    (tmp_path / "starts_threads.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import starts_threads
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.lanes import open_pool

lanes = [open_pool("process", starts_threads.double, name="stage").open() for _ in range(2)]
print([lane.run([21]) for lane in lanes])
"""
    done = run_script(code)
    assert done.stdout == "[[42], [42]]\n", done.stderr


def test_siblings_draw_different_random_numbers() -> None:
    with one_lane(functions.whereabouts) as first, one_lane(functions.whereabouts) as second:
        (here,), (there,) = first.run(["random"]), second.run(["random"])
    assert all(a != b for a, b in zip(here, there, strict=True))


def test_bound_arrays_are_shared_by_all_lanes() -> None:
    table = np.arange(4_000_000.0)  # 32 MB
    pool = ProcessLanePool(functions.HasTable(table), name="stage", keep_spare=False)
    lanes = [pool.open() for _ in range(3)]
    assert [lane.run([7, 3_999_999]) for lane in lanes] == [[7.0, 3_999_999.0]] * 3
    private = [psutil.Process(lane.pid).memory_full_info().uss for lane in lanes]
    assert all(uss < 32_000_000 + 16_000_000 for uss in private)
    for lane in lanes:
        lane.close()
    pool.close()


# ---- functions that cannot cross, and scripts ----


def test_a_function_that_cannot_be_pickled_is_refused_at_once_with_the_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()

    def locked(item: int) -> int:
        with lock:
            return item

    with pytest.raises(ConfigError, match=r"stage 'decode'.*locked.*cloudpickle fails too"):
        open_pool("process", locked, name="decode")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"stage 'decode'.*locked.*pip install cloudpickle"):
        open_pool("process", locked, name="decode")


def test_a_closure_crosses_by_value_where_cloudpickle_is_installed() -> None:
    pytest.importorskip("cloudpickle")
    offset = 5
    with one_lane(lambda item: item + offset) as lane:
        assert lane.run([1, 2]) == [6, 7]
        (failed,) = lane.run(["text"])
        assert "lambda item: item + offset" in str(failed.error.__cause__)
        tensor = lane.run([torch.arange(1_000_000)[:10]])[0]
        assert tensor.untyped_storage().nbytes() == 80  # our reducers hold beside cloudpickle's


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"context": "thread"}, "unknown", id="context"),
        pytest.param({"max_shared_bytes": -1}, "negative", id="bytes"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ProcessLanePool(functions.same, name="stage", **options)


SCRIPT = """
from dataclasses import dataclass
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.lanes import open_pool, LaneDiedError

@dataclass
class Row:
    value: int

def double(row):
    return Row(row.value * 2)

def main():
    pool = open_pool("process", {fn}, name="stage", context={context!r})
    lane = pool.open()
    print(lane.run([Row(21), Row(4)]))
    lane.close()
    pool.close()

{guard}
"""
GUARD = 'if __name__ == "__main__":\n    main()\n'


def run_script(text: str, *, as_file: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    if as_file is not None:
        as_file.write_text(text)
    command = [sys.executable, "-W", "error", *([str(as_file)] if as_file else ["-"])]
    return subprocess.run(command, input=text, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("context", ["forkserver", "spawn", "fork"])
def test_functions_and_classes_of_a_script_work(tmp_path: Path, context: str) -> None:
    done = run_script(SCRIPT.format(fn="double", context=context, guard=GUARD), as_file=tmp_path / "script.py")
    assert done.stdout == "[Row(value=42), Row(value=8)]\n", done.stderr
    assert not done.stderr


def test_a_script_without_guard_is_refused_and_told_why(tmp_path: Path) -> None:
    done = run_script(SCRIPT.format(fn="double", context=None, guard="main()"), as_file=tmp_path / "script.py")
    assert done.returncode != 0
    assert "if __name__ == '__main__'" in done.stderr


def test_a_main_without_file_works_by_value() -> None:
    pytest.importorskip("cloudpickle")
    done = run_script(SCRIPT.format(fn="double", context=None, guard=GUARD))
    assert done.stdout == "[Row(value=42), Row(value=8)]\n", done.stderr


# ---- fork, on request ----


def test_fork_beside_other_threads_is_refused() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="other")
    thread.start()
    try:
        with pytest.raises(ConfigError, match=r"context='fork' with other threads running \(other"):
            ProcessLanePool(functions.same, name="stage", context="fork")
    finally:
        release.set()
        thread.join()
