"""The example on a Ray cluster of this machine, as its README tells a user to run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_every_item_comes_once_and_in_order_though_an_actor_is_killed() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "examples.ray_lanes.run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "every item once, in order" in done.stdout
    [actors] = re.findall(r"200 items from (\d+) actors", done.stdout)
    assert int(actors) >= 2  # the killed one, and who came for it
