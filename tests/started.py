"""Python started by a test, in a process of its own: what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def told_by(module: str, *arguments: str) -> Any:
    """The JSON object that `python -m module` prints as its last line."""
    return json.loads(_ended(module, *arguments, folder=ROOT).stdout.splitlines()[-1])


def console(folder: Path, *arguments: str) -> str:
    """All that `lightning-intune` prints when called in `folder`."""
    ended = _ended("lightning_intune.console", *arguments, folder=folder)
    return ended.stdout + ended.stderr


def synth_sessions(folder: Path) -> None:
    """The files of the examples' READMEs, smaller."""
    quiet = ["--row-group-rows", "1000", "--quiet"]
    console(folder, "synth", "sessions.parquet", "--rows", "12000", *quiet)
    console(folder, "synth", "sessions-val.parquet", "--rows", "3000", "--seed", "1", *quiet)


def _ended(module: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=590,  # each test has a shorter limit of its own
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended
