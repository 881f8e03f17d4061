"""Scenarios of what comes from outside: hostile files, and storage behind a network that fails."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

from tests.faults import hostile
from tests.faults.ledger import Trial
from tests.faults.runner import Scenario

BATCH = 500
"""Mutations of one trial."""


def hostile_files(trial: Trial) -> None:
    """The mutations that belong to the trial's seed; each file is an item, and is read or refused in our words."""
    first = trial.seed * BATCH
    num_done, counts, bad = hostile.fuzz(first, first + BATCH, trial.folder)
    trial.inject(num_done)
    trial.broken += bad
    trial.num_in += BATCH
    trial.num_once += num_done - len(bad)
    refused = sum(count for outcome, count in counts.items() if not outcome.endswith("fine"))
    trial.num_errors += refused
    trial.num_named += sum(count for outcome, count in counts.items() if outcome.endswith(hostile.NAMES))


def remote_storage(trial: Trial) -> None:
    """See `remote`."""
    command = [sys.executable, "-m", "tests.faults.remote", str(trial.seed)]
    done = subprocess.run(command, cwd=hostile.ROOT, capture_output=True, text=True, check=False, timeout=400)
    if done.returncode != 0:
        trial.check(False, f"the run ended with {done.returncode}: {done.stderr[-500:]}")
        return
    found = json.loads(done.stdout)
    trial.inject(found["injected"])
    trial.came(range(2400), found["rows"])
    trial.check(not found["is_secret_out"], "a credential was written somewhere")
    trial.num_errors += 24  # row groups that are quarantined while the server is down
    trial.num_named += found["quarantined"]


HOSTILE = Scenario(
    name="hostile files", promise="our own errors only", run=hostile_files, timeout_s=3600.0, is_heavy=True
)
REMOTE = Scenario(
    name="remote: slow, 503, cut, reset",
    promise="retried; no secret told",
    run=remote_storage,
    is_heavy=True,
    timeout_s=900.0,
)
SCENARIOS = (HOSTILE, *([REMOTE] if importlib.util.find_spec("moto") is not None else []))
