"""Real ranks of a benchmark as programs of their own, which meet in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run_ranks(module: str, world_size: int, *settings: object, limit_s: float) -> list[Any]:
    """What each rank of `python -m module RANK WORLD_SIZE STORE SETTINGS...` prints last, as JSON, by rank.

    One thread each. RuntimeError where a rank fails; none outlives this call.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        told = [str(world_size), str(Path(folder) / "store"), *map(str, settings)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(rank), *told],
                env=environment,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            outputs = [rank.communicate(timeout=limit_s)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"ranks ended with {[rank.returncode for rank in ranks]}; their errors are above")
    return [json.loads(output.splitlines()[-1]) for output in outputs]
