"""All scenarios, in the order of the soak's table."""

from __future__ import annotations

from tests.faults import foreign, jobs, lightning_kills, memory, odd, stages
from tests.faults.runner import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *stages.SCENARIOS,
    *odd.SCENARIOS,
    *jobs.SCENARIOS,
    *lightning_kills.SCENARIOS,
    *memory.SCENARIOS,
    *foreign.SCENARIOS,
)
