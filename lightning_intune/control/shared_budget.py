"""A budget that several tuners share: each says what it could use and reads what it may."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from lightning_intune.control.budget import BudgetReading
from lightning_intune.control.reading import Reading
from lightning_intune.meters import FlowStats

_GROWTH = 1.5
_MARGIN = 1.1
_LEAST = 0.1


@final
@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one of those who share could use. `cpus` is CPU seconds per second."""

    cpus: float
    memory_bytes: float
    """What it holds now."""
    thread_cpus: float = 0.0
    """Of the CPU seconds per second that it uses, those of its stages' threads."""


class SharedBudget(ABC):
    """A `ReadsBudget` that is one part of a greater one. None of its methods waits for the others."""

    @abstractmethod
    def read(self) -> BudgetReading:
        """The part now; called once per turn."""

    @abstractmethod
    def tell(self, demand: Demand) -> None:
        """What this one could use, after each turn."""

    @abstractmethod
    def rest(self) -> None:
        """Training stands still here (validation): the others may have this part until the next `read`."""

    def own(self, window: FlowStats) -> FlowStats:
        """`window` with the CPU seconds of this process that are this one's own."""
        return window


def demand_of(reading: Reading, window: FlowStats) -> Demand:
    """What a turn (B = 1) says of the need: what it used, and more as far as its trainer waited for data.

    At most half as much again per turn: a pipeline that waits for a disk could not use more, and what it can use shows
    when it has it.
    """
    wait = float(reading.wait_share[0])
    used = float(reading.cpu_used[0])
    threads_s = sum(stage.cpu_s for stage in window.stages if stage.lane == "thread")
    return Demand(
        cpus=_LEAST + _MARGIN * used * min(_GROWTH, 1.0 / max(1.0 - wait, 1e-3)),
        memory_bytes=float(reading.memory_bytes[0]),
        thread_cpus=threads_s / max(window.time_s, 1e-9),
    )
