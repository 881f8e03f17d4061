"""Signals to a run of Lightning's Trainer, and kills of its workers: resumed, each item is trained on once."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time

import psutil

from tests.faults.jobs import gone, start, wait_for
from tests.faults.ledger import Trial
from tests.faults.runner import Scenario

NUM_ITEMS = 200
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice", "workers")
END_S = 240.0


def killed(trial: Trial, kind: str) -> None:
    """One run, struck once (its workers: six times) at a random moment; then resumed until it comes through."""
    job = start(trial, ["tests.faults.lightning_job", str(trial.folder), str(NUM_ITEMS)])
    is_over = wait_for(trial.folder / "started", job, trial.rng.uniform(0.0, 0.15))
    trial.check(not is_over, f"the trainer was over before anything was done to it, with {job.returncode}")
    if kind == "workers":
        _kill_workers(trial, job)
        _await(trial, job, kind)
    else:
        _strike(trial, job, kind)
        job = start(trial, ["tests.faults.lightning_job", str(trial.folder), str(NUM_ITEMS)])
        _await(trial, job, f"a resume after {kind}")
    trained = trial.folder / "trained.json"
    trial.check(job.returncode == 0, f"the run after {kind} ended with {job.returncode}: {_log(trial)}")
    trial.came(range(NUM_ITEMS), json.loads(trained.read_text()) if trained.exists() else [], in_order=False)


def _strike(trial: Trial, job: subprocess.Popen[bytes], kind: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(job.pid).children(recursive=True)
        for number in range(2 if kind == "SIGINT twice" else 1):
            time.sleep(number * trial.rng.uniform(0.0, 0.05))
            job.send_signal(signal.Signals[kind.split()[0]])
            trial.inject()
        _await(trial, job, kind)
        # Lightning itself ends with status 0 after SIGTERM: what tells is that it did not train to the end.
        is_done = (trial.folder / "trained.json").exists()
        trial.check(not is_done, f"swallowed: the trainer went on to the end after {kind}")
        gone(trial, family)


def _kill_workers(trial: Trial, job: subprocess.Popen[bytes]) -> None:
    for _ in range(6):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            children = [child for child in psutil.Process(job.pid).children(recursive=True) if not child.children()]
            trial.rng.choice(children).kill()
            trial.inject()
        time.sleep(trial.rng.uniform(0.0, 0.05))


def _await(trial: Trial, job: subprocess.Popen[bytes], after: str) -> None:
    try:
        job.wait(END_S)
    except subprocess.TimeoutExpired:
        trial.check(False, f"hung: the trainer lives {END_S:g} s after {after}: {_log(trial)}")
        job.kill()
        job.wait()


def _log(trial: Trial) -> str:
    return (trial.folder / "log").read_text(errors="replace")[-400:]


def lightning_trainer(trial: Trial) -> None:
    """One of the kinds, by the seed in turn."""
    killed(trial, KINDS[trial.seed % len(KINDS)])


SCENARIOS = (
    Scenario(
        name="Lightning's Trainer killed, resumed",
        promise="trained once each",
        run=lightning_trainer,
        is_heavy=True,
        timeout_s=900.0,
    ),
)
