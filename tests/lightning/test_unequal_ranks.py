"""Ranks of one host share its CPUs and memory by what their pipelines need."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_with_unequal_pipelines_get_unequal_shares_that_sum_to_the_machine(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.lightning.unequal_ranks"],
            cwd=tmp_path,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "TORCHELASTIC_RUN_ID": "unequal",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=240) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], ended
    assert "lost touch" not in "".join(err for _, err in ended)
    found = [json.loads(next(line for line in out.splitlines() if line.startswith("{"))) for out, _ in ended]
    (light, cpus, light_bytes, limit), (heavy, _, heavy_bytes, _) = (each["shares"] for each in found)
    assert min(each["turns"] for each in found) >= 3
    assert light + heavy == pytest.approx(cpus)
    assert heavy > 1.5 * light
    assert light_bytes + heavy_bytes == pytest.approx(limit, abs=2)
