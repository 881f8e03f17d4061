"""The contest is fair: the same batches for all, each engine makes each batch once, the best setting is found."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from benchmarks.peers import table
from benchmarks.peers_parts import data
from benchmarks.peers_parts.child import measure, reached_s
from benchmarks.peers_parts.contest import Entrant, contends
from benchmarks.peers_parts.engines import BARE_THREADS, PEERS, PLAIN, Engine
from benchmarks.peers_parts.measured import ROOT, measured
from benchmarks.peers_parts.ours import FIXED, OURS, fixed_settings, tuned
from benchmarks.peers_parts.sweep import sweep
from benchmarks.peers_parts.work import Fused, Work, digest, make_work

ROWS = 256
WORKLOADS = ("local", "udf", "sessions", "sessions_layout")
IN_PROCESS = {"torchdata": ("threads=2", "stages=2"), "spdl": ("threads=2", "stages=2"), "grain": ("threads=2",)}
IN_PROCESS |= {"dataloader": ("workers=0",), "tfdata": ("threads=2", "autotune")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts of 4 batches of 256 rows."""
    made = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "ROWS_PER_BATCH", ROWS)
        data.write(made, 4 * ROWS)
    return made


class CountingRead:
    """Reads, and counts how often each batch was read."""

    def __init__(self, work: Work) -> None:
        self.counts: Counter[int] = Counter()
        self._read = work.read

    def __call__(self, index: int) -> pa.Table:
        self.counts[int(index)] += 1
        return self._read(index)


@pytest.mark.parametrize("index", [0, 3])
def test_the_session_layout_holds_the_same_batches_as_the_rows(folder: Path, index: int) -> None:
    rows = Fused(make_work("sessions", folder), tensors=False)(index)
    sessions = Fused(make_work("sessions_layout", folder), tensors=False)(index)
    assert "inverse" in sessions
    assert "inverse" not in rows
    assert len(sessions["values"]) < len(rows["values"]) / 4
    assert digest(sessions) == digest(rows)


def test_other_batches_have_other_digests(folder: Path) -> None:
    fused = Fused(make_work("sessions_layout", folder), tensors=False)
    assert digest(fused(0)) != digest(fused(1))


@pytest.mark.parametrize("name", ["dense", "labels", "tokens", "values"])
def test_a_digest_sees_every_part_of_a_batch(folder: Path, name: str) -> None:
    arrays = {key: np.array(value) for key, value in Fused(make_work("udf", folder), tensors=False)(0).items()}
    before = digest(arrays)
    arrays[name].reshape(-1)[7] += 1
    assert digest(arrays) != before


@pytest.mark.parametrize("workload", WORKLOADS)
def test_ours_gives_the_batches_of_the_plain_loop_in_order(folder: Path, workload: str) -> None:
    work = make_work(workload, folder)
    with PLAIN.open(work, "loop") as batches:
        expected = [digest(batch) for batch in islice(batches, 6)]
    with OURS.open(work, tuned(fixed_settings(workload)[0])) as batches:
        assert [digest(batch) for batch in islice(batches, 6)] == expected
    for setting in fixed_settings(workload):
        with FIXED.open(work, setting) as batches:
            assert [digest(batch) for batch in islice(batches, 6)] == expected


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        pytest.param(name, setting, id=f"{name}-{setting}")
        for name, settings in IN_PROCESS.items()
        for setting in settings
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_peer_gives_the_same_batches_and_reads_each_once(folder: Path, name: str, setting: str) -> None:
    engine = next(engine for engine in PEERS if engine.name == name)
    module = {"spdl": "spdl.pipeline", "tfdata": "tensorflow", "dataloader": "torch"}.get(name, name)
    pytest.importorskip(module)
    if name != "dataloader":  # the others leave threads behind: in a process of their own, as the contest runs them
        job = {"folder": str(folder), "engine": name, "setting": setting}
        found, error = measured("tests.benchmarks.counted", job, 110.0)
        assert error == ""
        assert found is not None
        assert found["digests"] == _expected(folder)
        assert set(found["reads"]) == {1}
        return
    work = make_work("local", folder)
    read = CountingRead(work)
    counted = Work(name=work.name, read=read, transform=work.transform)  # type: ignore[arg-type]
    with engine.open(counted, setting) as batches:
        assert [digest(batch) for batch in islice(batches, 6)] == _expected(folder)
    assert set(read.counts.values()) == {1}


def test_bare_threads_give_the_same_batches_in_order(folder: Path) -> None:
    with BARE_THREADS.open(make_work("local", folder), "threads=2") as batches:
        assert [digest(batch) for batch in islice(batches, 6)] == _expected(folder)


def _expected(folder: Path) -> list[list[int]]:
    with PLAIN.open(make_work("local", folder), "loop") as batches:
        return [digest(batch) for batch in islice(batches, 6)]


def _swept(rates: dict[str, float], to_beat: float = 0.0, **settings: Any) -> tuple[list[str], str]:
    """What was tried, in order, and the best."""
    tried: list[str] = []

    def rate(setting: str) -> float | None:
        tried.append(setting)
        return rates.get(setting)

    engine = Engine(name="fake", package="fake", open=PLAIN.open, **settings)
    found = sweep(engine, rate, to_beat=to_beat)
    return tried, max(found, key=lambda setting: found[setting])


def test_a_sweep_goes_on_beyond_the_widest_while_that_is_the_best() -> None:
    rates = {"t=1": 1.0, "t=2": 2.0, "t=4": 4.0, "t=8": 8.0, "t=16": 16.0, "t=32": 10.0}
    tried, best = _swept(rates, shapes=("t",))
    assert tried == ["t=2", "t=4", "t=8", "t=16", "t=32"]
    assert best == "t=16"


def test_width_1_is_tried_unless_4_is_clearly_better_than_2() -> None:
    tried, best = _swept({"t=1": 3.0, "t=2": 2.0, "t=4": 2.1, "t=8": 2.0}, shapes=("t",))
    assert tried == ["t=2", "t=4", "t=8", "t=1"]
    assert best == "t=1"


def test_only_peers_far_behind_the_best_one_of_their_layout_miss_rounds() -> None:
    entrants = {engine.name: Entrant(engine=engine, work="local") for engine in (*PEERS, FIXED)}
    on_sessions = Entrant(engine=PEERS[1], work="sessions_layout")
    rates = {"dataloader": 10.0, "spdl": 85.0, "grain": 100.0, "tfdata": 84.0, "torchdata": 20.0, "ours_fixed": 900.0}
    swept = {entrants[name]: {"a": rate / 2, "b": rate} for name, rate in rates.items()} | {on_sessions: {"a": 20.0}}
    assert [name for name in rates if contends(entrants[name], swept)] == ["dataloader", "spdl", "grain", "ours_fixed"]
    assert contends(on_sessions, swept)


def test_a_shape_far_behind_the_engines_best_is_tried_once() -> None:
    tried, best = _swept({"a=2": 10.0, "a=4": 9.0, "a=8": 8.5, "a=1": 6.0, "b=2": 4.9}, shapes=("a", "b"))
    assert tried == ["a=2", "a=4", "a=8", "a=1", "b=2"]
    assert best == "a=2"


def test_a_shape_far_behind_the_best_peer_so_far_is_tried_once() -> None:
    rates = {"a=2": 10.0, "a=4": 9.0, "a=8": 8.5, "a=1": 6.0}
    assert _swept(rates, 21.0, shapes=("a",)) == (["a=2"], "a=2")
    assert len(_swept(rates, 19.0, shapes=("a",))[0]) == 4


def test_settings_that_fail_are_left_out_and_the_others_still_tried() -> None:
    tried, best = _swept({"auto": 3.0, "t=4": 5.0}, shapes=("t",), fixed=("auto",))
    assert tried[0] == "auto"
    assert best == "auto"  # its first width failed, so the shape counts as far behind


def test_the_rate_counts_only_what_comes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves 0.1 s per batch of 10 rows during 1 s, then 0.05 s: 200 rows/s.
    clock = {"s": 0.0}
    monkeypatch.setattr("benchmarks.peers_parts.child.time.perf_counter", lambda: clock["s"])

    def batches() -> Any:
        while True:
            clock["s"] += 0.1 if clock["s"] < 1.0 - 1e-9 else 0.05
            yield {"labels": np.zeros((10, 1))}

    found = measure(batches(), warm_up_s=1.0, seconds=2.0)
    assert found["rows_per_s"] == pytest.approx(200.0)
    assert 1.0 <= found["seconds_to_95pct"] <= 2.3


def test_a_rate_that_is_never_reached_counts_until_the_end() -> None:
    assert reached_s([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4], [5, 5]], 9.0) == 5.0


def test_a_run_that_fails_says_why(folder: Path) -> None:
    job = {"workload": "local", "folder": str(folder / "nothing"), "engine": "plain", "setting": "loop"}
    found, error = measured("benchmarks.peers_parts.child", job, 110.0)
    assert found is None
    assert "nothing" in error or "list index out of range" in error


def test_a_run_that_does_not_finish_is_ended(folder: Path) -> None:
    job = {"workload": "local", "folder": str(folder), "engine": "plain", "setting": "loop"}
    found, error = measured("benchmarks.peers_parts.child", job | {"warm_up_s": 900.0, "seconds": 1.0}, 0.1)
    assert found is None
    assert error == "did not finish: no figures after 0 s"


def test_a_benchmark_that_is_told_to_end_leaves_nothing_running(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = "from benchmarks.peers_parts.measured import measured; import sys; "
    code += "measured('tests.benchmarks.stays', {'path': sys.argv[1]}, 600.0)"
    benchmark = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    try:
        deadline_s = time.monotonic() + 60.0
        while not path.exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        pid = int(path.read_text())
        benchmark.terminate()
        assert benchmark.wait(60.0) == 128 + signal.SIGTERM
        with suppress(psutil.NoSuchProcess):  # or a zombie, where nobody reaps orphans
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
    finally:
        benchmark.kill()
        benchmark.wait()


def test_the_table_says_both_warm_ups_and_what_failed() -> None:
    run = {"best_rows_per_s": 50.0, "cpu_s": 2.0, "peak_pss_mb": 10.0, "setting": "workers=2"}
    shown = table(
        {
            "workload": "local",
            "runs": 5,
            "setting": "fused/dqn/thread",
            "roofline_rows_per_s": 200.0,
            "roofline_share": 0.5,
            "ours_rows_per_s": 100.0,
            "seconds_to_95pct": 3.0,
            "warm_up_s": {"ours": 12.0, "peers": 1.5},
            "cpu_s": 1.0,
            "peak_pss_mb": 5.0,
            "peers": {"dataloader": run},
            "failures": {"local ray tasks=2": "did not finish: no figures after 60 s"},
        }
    )
    assert "ours 12 s" in shown
    assert "peers 1.5 s" in shown
    assert "| dataloader | workers=2 | 50 | 2.00 | 10 | 2.00 |" in shown
    assert "local ray tasks=2: did not finish" in shown
