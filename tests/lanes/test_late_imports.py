"""Modules that a function imports when it is called: processes started later have them, where that is safe."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.lanes.late_imports import LateImports
from lightning_intune.flow.lanes.process import ProcessLanePool
from tests.lanes import functions
from tests.lanes.opened import one_lane

COUNTED = """
import os, pathlib
file = pathlib.Path({path!r})
count = len(file.read_text()) if file.exists() else 0
file.write_text("x" * (count + 1))
"""
UNFIT = {
    "threads": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
    "opens": "file = open('/dev/null')\n",
    "fails": COUNTED + "if count == 1: raise RuntimeError('not here')\n",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as one of installed packages."""
    FORK_SERVER.close()  # where they are is asked once per interpreter
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "base"))
    monkeypatch.setattr(site, "USER_BASE", None)
    monkeypatch.setattr(site, "USER_SITE", None)
    folder = Path(site.getusersitepackages())
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    yield folder
    FORK_SERVER.close()


def had(name: str) -> list[bool]:
    """Of two processes, one after the other, whether each had the module before its function's first call."""
    pool = ProcessLanePool(functions.was_imported, name="stage")
    found: list[bool] = []
    for _ in range(2):
        while not pool.is_warm:
            os.sched_yield()
        lane = pool.open()
        try:
            found += lane.run([name])
            assert lane.run([name]) == [True]
        finally:
            lane.close()
    pool.close()
    return found


def test_a_module_that_the_first_call_imports_is_there_in_the_next_process() -> None:
    assert had("colorsys") == [False, True]


def test_installed_packages_are_too(installed: Path) -> None:
    (installed / "late_package").mkdir()
    (installed / "late_package" / "__init__.py").write_text("from late_package import inner\n")
    (installed / "late_package" / "inner.py").write_text("")
    assert had("late_package") == [False, True]


def test_a_module_of_ones_own_is_imported_by_each_process_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_own.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert had("late_own") == [False, False]


@pytest.mark.parametrize("kind", UNFIT)
def test_one_that_must_not_be_shared_by_forks_is_not(kind: str, installed: Path, tmp_path: Path) -> None:
    (installed / f"late_{kind}.py").write_text(UNFIT[kind].format(path=str(tmp_path / "count")))
    assert had(f"late_{kind}") == [False, False]
    assert not had(f"late_{kind}")[0]  # another stage begins as this one did


def test_a_stage_outlives_a_server_that_such_an_import_ends(installed: Path, tmp_path: Path) -> None:
    path = tmp_path / "count"
    (installed / "late_dies.py").write_text(COUNTED.format(path=str(path)) + "if count == 1: os._exit(9)\n")
    # Items until the server has tried.
    source = IterableSource(
        iter(lambda: "done" if path.exists() and len(path.read_text()) > 1 else "late_dies", "done")
    )
    stage = ElasticMapper(source, functions.was_imported, num_workers=1, method="process", name="stage")
    with ElasticLoader(stage) as loader:
        assert all(isinstance(had, bool) for had in loader)


def test_the_spare_from_before_is_ended() -> None:
    pool = ProcessLanePool(functions.was_imported, name="stage")
    lane = pool.open()
    while not pool.is_warm:
        os.sched_yield()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    assert lane.run(["wave"]) == [False]
    while not pool.is_warm:
        os.sched_yield()
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert len(after) == len(before)
    assert len(after - before) == 1
    lane.close()
    pool.close()


def test_closing_at_once_leaves_no_process() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}  # an earlier test's, a tracker's
    for name in ("plistlib", "netrc", "mailbox", "sched"):
        pool = ProcessLanePool(functions.was_imported, name="stage")
        lane = pool.open()
        lane.run([name])
        pool.close()
        lane.close()
        left = {child.pid for child in psutil.Process().children(recursive=True)}
        assert left - before <= FORK_SERVER.pids


def test_only_what_came_since_counts_and_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    late = LateImports()
    assert late.found() == []
    import colorsys  # noqa: F401
    import wave  # noqa: F401

    assert [name for name in late.found() if name in ("colorsys", "wave")] == ["colorsys", "wave"]
    monkeypatch.setattr("lightning_intune.flow.lanes.late_imports._MAX_CHARS", len("colorsys"))
    assert late.found() == ["colorsys"]


def test_the_servers_imports_are_metered_as_start_up() -> None:
    FORK_SERVER.close()
    assert FORK_SERVER.cpu_s() == 0.0
    with one_lane(functions.same):
        used_s = FORK_SERVER.cpu_s()
        assert used_s > 0.0
        assert ElasticLoader(IterableSource([1])).stats().startup_cpu_s >= used_s
