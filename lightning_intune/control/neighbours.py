"""How many of our CPUs other jobs keep busy: what everyone used, less what we did."""

from __future__ import annotations

from typing import final

from lightning_intune.control.budget import BudgetReading
from lightning_intune.meters import FlowStats


@final
class Neighbours:
    """Differences of cumulative counters between two turns. One thread's.

    The other ranks of one host are neighbours like any other: each takes what the others leave, and the
    scheduler sees to fairness.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float, float] | None = None

    def observe(self, stats: FlowStats, budget: BudgetReading) -> float:
        """CPUs out of `budget.cpus` that others kept busy since the last call; 0 at first and where unknown."""
        ours_s = stats.process_cpu_s + stats.startup_cpu_s
        ours_s += sum(stage.cpu_s for stage in stats.stages if stage.lane == "process")
        now = (stats.time_s, budget.host_busy_s, ours_s)
        last, self._last = self._last, now
        if last is None or budget.host_busy_s <= 0 or budget.allowed_cpus <= 0:
            return 0.0
        elapsed_s = now[0] - last[0]
        if elapsed_s <= 0:
            return 0.0
        others = max(0.0, (now[1] - last[1]) - (now[2] - last[2])) / elapsed_s
        return max(0.0, budget.cpus - max(0.0, budget.allowed_cpus - others))
