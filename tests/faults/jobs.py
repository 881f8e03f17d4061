"""Faults of the whole job: signals to the trainer, storage that fails, a full disk, little memory, a dead rank."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from lightning_intune.errors import StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, EqualSteps, IterableSource, ParquetSource, retry, skip
from lightning_intune.flow.row_groups import RowGroupReadError
from tests.faults import functions
from tests.faults.ledger import Trial
from tests.faults.runner import Scenario
from tests.flow.ranks import Line, on_all_ranks

ROOT = Path(__file__).parents[2]
NUM_ITEMS = 600
END_S = 120.0
"""Until then whoever was told to end must have: many times what it takes, since a machine may be busy."""


# ---- the trainer is told to go, or killed ----


def killed_trainer(trial: Trial) -> None:
    """SIGKILL at a random moment, again and again, until a run comes through."""
    for number in range(6):
        job = start(trial, ["tests.faults.trainer", str(trial.folder), str(NUM_ITEMS)])
        if number < 3 and not wait_for(trial.folder / "started", job, trial.rng.uniform(0.0, 0.4)):
            _kill_and_count(trial, job)
            (trial.folder / "started").unlink(missing_ok=True)
            continue
        job.wait()
        break
    trial.check((trial.folder / "done").exists(), "the last run did not come through")
    saved = json.loads((trial.folder / "saved.json").read_text())
    trial.came(range(NUM_ITEMS), saved["trained"], in_order=False)


def _kill_and_count(trial: Trial, job: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    trial.inject()
    gone(trial, family)


def gone(trial: Trial, family: list[psutil.Process]) -> None:
    """Whoever was of the family is no more."""
    _, alive = psutil.wait_procs(family, timeout=END_S)
    left = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    trial.check(not left, f"leaked process: {len(left)} workers outlive their trainer")


def interrupted_trainer(trial: Trial) -> None:
    """Ctrl-C, twice in half of the trials; SIGTERM in others: the job ends soon, its workers too, and can resume."""
    kind = trial.rng.choice(["once", "twice", "term"])
    job = start(trial, ["tests.faults.trainer", str(trial.folder), str(NUM_ITEMS * 10)])
    wait_for(trial.folder / "saved.json", job, 0.2)
    family = psutil.Process(job.pid).children(recursive=True)
    for _ in range(2 if kind == "twice" else 1):
        job.send_signal(signal.SIGTERM if kind == "term" else signal.SIGINT)
        trial.inject()
        time.sleep(trial.rng.uniform(0.0, 0.05))
    try:
        job.wait(END_S)
    except subprocess.TimeoutExpired:
        trial.check(False, f"hung: the trainer lives {END_S:g} s after {kind}")
        job.kill()
        job.wait()
    trial.check(job.returncode != 0, f"the trainer ended with 0 after {kind}")
    gone(trial, family)
    saved = json.loads((trial.folder / "saved.json").read_text())
    trial.check(len(set(saved["trained"])) == len(saved["trained"]), "repeated: in the saved state")


def start(trial: Trial, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """`python -m ARGUMENTS`, which writes into the trial's log."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    log = (trial.folder / "log").open("ab")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True, **options)


def wait_for(path: Path, job: subprocess.Popen[bytes], then_s: float) -> bool:
    """Until `path` is there, and a moment longer; whether the job ended meanwhile."""
    while not path.exists() and job.poll() is None:
        time.sleep(0.01)
    time.sleep(then_s)
    return job.poll() is not None


# ---- storage ----


class FlakyFileSystem(LocalFileSystem):
    """Local files, of which some cannot be opened for a while."""

    protocol = "flaky"
    cachable = False

    def __init__(self, *, fails: Callable[[str], bool]) -> None:
        super().__init__()
        self.fails = fails

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if self.fails(path):
            raise OSError(5, "Input/output error", path)
        return super()._open(path, mode, block_size, **options)


def _files(folder: Path, num_files: int, rows: int) -> list[str]:
    paths: list[str] = []
    for number in range(num_files):
        path = folder / f"{number}.parquet"
        table = pa.table({"n": range(number * rows, (number + 1) * rows)})
        pq.write_table(table, path, row_group_size=rows // 2)
        paths.append(str(path))
    return paths


def failing_reads(trial: Trial) -> None:
    """One open in four fails while the run goes on: retried they cost nothing, raised they are named."""
    paths, rng, lock = _files(trial.folder, 6, 100), trial.rng, threading.Lock()
    is_up = True

    def fails(path: str) -> bool:
        with lock:
            is_hit = not is_up and path.endswith(".parquet") and rng.random() < 0.25
        trial.inject(is_hit)
        return is_hit

    source = ParquetSource(paths, filesystem=FlakyFileSystem(fails=fails))
    is_up = False
    read = ElasticMapper(source, source.reader(), 3, name="read", on_error=retry(50, 0.001))
    with ElasticLoader(read) as loader:
        trial.came(range(600), [n for table in loader for n in table["n"].to_pylist()])
    trial.inject()
    gone = Path(paths[3])
    gone.unlink()
    is_up = True
    out = list[int]()
    source.reset()
    read = ElasticMapper(source, source.reader(), 2, name="read")
    with (
        ElasticLoader(read) as loader,
        trial.raises(RowGroupReadError, "stage 'read'", str(gone), "row group 0", item=6),
    ):
        for table in loader:
            out += table["n"].to_pylist()
    trial.came(range(300), out)
    read = ElasticMapper(source, source.reader(), 2, name="read", on_error=skip(max_share=0.2))
    with ElasticLoader(read) as loader:
        rest = [n for table in loader for n in table["n"].to_pylist()]
    trial.came([n for n in range(600) if not 300 <= n < 400], rest)


def full_disk(trial: Trial) -> None:
    """The quarantine file's disk is full: told with the item and the file, and the state resumes before that item."""
    policy = skip(max_share=1.0, quarantine="/dev/full")
    node = ElasticMapper(IterableSource(range(50)), functions.sometimes_raises, 2, name="work", on_error=policy)
    out = list[int]()
    with trial.raises(OSError, "No space left", "/dev/full", "stage 'work'", item=7):
        out.extend(node)
    state = node.state_dict()
    node = ElasticMapper(
        IterableSource(range(50)), functions.sometimes_raises, 2, name="work", on_error=skip(max_share=1.0)
    )
    node.reset(state)
    out.extend(node)
    trial.came([n for n in range(50) if n % 10 != 7], out)
    trial.inject()


# ---- descriptors ----


def few_files(trial: Trial) -> None:
    """No more descriptors than there are now: process lanes cannot start, which is told and not waited for."""
    before, error = resource.getrlimit(resource.RLIMIT_NOFILE), None
    node = ElasticMapper(IterableSource(range(20)), functions.same, 1, method="process", name="work")
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), before[1]))
    try:
        with ElasticLoader(node) as loader:
            trial.came(range(20), list(loader))  # where a warm process was there already
    except (OSError, StageError) as told:
        error = told
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    if error is not None:
        with trial.raises((OSError, StageError), "work"):
            raise error
    trial.inject()
    node = ElasticMapper(IterableSource(range(20)), functions.same, 1, method="process", name="work")
    with ElasticLoader(node) as loader:
        trial.came(range(20), loader)


# ---- another rank ----


def slow_and_dead_ranks(trial: Trial) -> None:
    """Three ranks of unequal lengths, one slow: as many steps on each. Then one dies, and the others are told."""
    lengths = [trial.rng.randint(10, 40) for _ in range(3)]
    slow, dead = trial.rng.sample(range(3), 2)
    stop_at = min(lengths) // 2

    def node(line: Line, fails_at: int | None) -> EqualSteps[int]:
        def work(n: int) -> int:
            if n == fails_at:
                raise OSError("this rank's disk is gone")
            time.sleep(0.003 if line.rank == slow else 0.0)
            return n

        stage = ElasticMapper(IterableSource(range(lengths[line.rank])), work, 2, name="work")
        return EqualSteps(stage, mode="drop", window=4, communicator=line)

    for rank, out in enumerate(on_all_ranks(3, lambda line: list(node(line, None)))):
        trial.check(isinstance(out, list), f"rank {rank} ended with {out!r}")
        trial.came(range(min(lengths)), out if isinstance(out, list) else [])

    def until_it_ends(line: Line) -> BaseException | None:
        try:
            for _ in node(line, stop_at if line.rank == dead else None):
                pass
        except (OSError, RuntimeError) as error:
            return error
        return None

    for rank, error in enumerate(on_all_ranks(3, until_it_ends)):
        with trial.raises(RuntimeError, "stage 'work'" if rank == dead else f"rank {dead}"):
            if error is not None:
                raise error
    trial.inject(2)


SCENARIOS = (
    Scenario(
        name="SIGKILL of the trainer, resumed",
        promise="trained once each",
        run=killed_trainer,
        is_heavy=True,
        timeout_s=900.0,
    ),
    Scenario(
        name="SIGINT, SIGINT twice, SIGTERM",
        promise="ends soon, workers too",
        run=interrupted_trainer,
        is_heavy=True,
        timeout_s=900.0,
    ),
    Scenario(name="reads fail", promise="retried, or named with file and row group", run=failing_reads),
    Scenario(name="a full disk", promise="named; resumes before the item", run=full_disk),
    Scenario(name="a slow and a dead rank", promise="equal steps; all end, and name it", run=slow_and_dead_ranks),
    Scenario(name="no file descriptors left", promise="told, not waited for", run=few_files),
)
