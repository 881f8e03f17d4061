"""What others use of our CPUs: everything that ran, less what was ours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_intune.control.budget import BudgetReading
from lightning_intune.control.neighbours import Neighbours
from lightning_intune.meters import FlowStats

START = FlowStats(time_s=0.0, num_batches=0, num_samples=0, wait_s=0.0, process_cpu_s=0.0, stages=())
BUDGET = BudgetReading(cpus=2.0, memory_bytes=1, memory_limit_bytes=10**9, allowed_cpus=2, host_busy_s=5.0)


@pytest.mark.parametrize(
    ("process_s", "startup_s", "others"),
    [
        pytest.param(1.0, 0.0, 0.5, id="others"),
        pytest.param(0.5, 1.0, 0.25, id="the server's imports are ours"),
        pytest.param(2.0, 1.0, 0.0, id="never negative"),
    ],
)
def test_what_is_not_ours_is_others(process_s: float, startup_s: float, others: float) -> None:
    neighbours = Neighbours()
    assert neighbours.observe(START, BUDGET) == 0.0
    # Two seconds, in which the machine's CPUs were busy for two.
    now = replace(START, time_s=2.0, process_cpu_s=process_s, startup_cpu_s=startup_s)
    assert neighbours.observe(now, replace(BUDGET, host_busy_s=7.0)) == pytest.approx(others)
