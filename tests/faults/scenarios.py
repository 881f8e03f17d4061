"""All scenarios, in the order of the soak's table."""

from __future__ import annotations

from tests.faults import foreign, jobs, memory, odd, stages
from tests.faults.runner import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *stages.SCENARIOS,
    *odd.SCENARIOS,
    *jobs.SCENARIOS,
    *memory.SCENARIOS,
    *foreign.SCENARIOS,
)
