"""What the meters showed over one turn, as arrays: the same for a live pipeline and for 500 simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats, clip
from lightning_intune.control.budget import BudgetReading
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats, StageStats

FIRST_ROOM_ERROR = 0.08
"""Doubt about an item's size measured over one turn; more turns lessen it."""


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """One turn of B pipelines, [B] or [B, N]. Worker states are mean workers (seconds per second)."""

    is_stage: Bools
    can_move: Bools
    """Stages whose width matters: False for a stage that neither computes nor waits (a prefetch depth)."""
    width: Floats
    low: Floats
    high: Floats
    busy: Floats
    starved: Floats
    blocked: Floats
    cpu: Floats
    run_delay: Floats
    fill: Floats
    """Share of the stage's room for items that is taken, in [0, 1]."""
    room_bytes: Floats
    """Bytes that one more worker may come to hold."""
    room_error: Floats
    """[B] how much of the buffers' room to leave free, since `room_bytes` is measured; a share of it."""
    samples_per_s: Floats
    wait_share: Floats
    cpus: Floats
    others: Floats
    """CPUs out of `cpus` that other jobs on the machine keep busy, 0 where that is not known."""
    cpu_used: Floats
    """CPU seconds per second of everything the job runs, trainer included."""
    memory_bytes: Floats
    memory_limit_bytes: Floats
    noise: Floats
    """Relative standard error of `samples_per_s`."""
    is_valid: Bools
    """[B] False where the turn says nothing: no samples, or meters that are not finite."""

    @cached_property
    def free_cpus(self) -> Floats:
        """[B] CPUs left by other jobs; the scheduler gives this one at least four tenths of its budget."""
        return np.maximum(self.cpus - self.others, 0.4 * self.cpus)

    @property
    def num_pipelines(self) -> int:
        return int(self.is_stage.shape[0])

    @property
    def num_stages(self) -> int:
        """N, the padded number of stages."""
        return int(self.is_stage.shape[1])

    def buffer_budget_bytes(self, margin: Floats | float) -> Floats:
        """[B] bytes that all stages' buffers together may come to hold, leaving a share of `margin` free.

        What is held now beside the buffers' present content stays.
        """
        content = (self.fill * self.width * self.room_bytes).sum(1)
        return (self.memory_limit_bytes - self.memory_bytes + content) / (1.0 + margin)

    def legal(self, widths: Floats) -> Floats:
        """`widths` within bounds, 0 where there is no stage, as they are where a stage stays put."""
        inside = clip(widths, self.low, self.high)
        return np.where(self.is_stage, np.where(self.can_move, inside, self.width), 0.0)


def live_reading(
    window: FlowStats, knobs: Sequence[Knob], budget: BudgetReading, noise: float, others: float = 0.0
) -> Reading:
    """The turn `window` of one live pipeline (B = 1), stages in the order of `knobs`.

    A window without samples or with a number that is not finite gives `is_valid` False and zeros.
    """
    stages = {stage.name: stage for stage in window.stages}
    found = [stages[knob.stage] for knob in knobs]
    time_s = max(window.time_s, 1e-9)
    # np.maximum, unlike max, keeps what is not a number visible.
    rows = np.maximum(np.array([_stage_row(stage, time_s) for stage in found], dtype=np.float64), 0.0).T[:, None, :]
    width, busy, starved, blocked, cpu, run_delay, fill, room_bytes = rows
    thread_cpu_s = sum(stage.cpu_s for stage in found if stage.lane == "thread")
    other_cpu_s = max(0.0, window.process_cpu_s - thread_cpu_s)
    whole = np.array([window.samples_per_s, window.wait_share, other_cpu_s / time_s, noise])
    is_sound = bool(np.isfinite(rows).all() and np.isfinite(whole).all() and window.num_samples > 0)
    bounds = np.array([(max(1, knob.bounds.low), max(1, knob.bounds.high)) for knob in knobs], dtype=np.float64)
    width = np.maximum(np.nan_to_num(width), bounds[None, :, 0])
    reading = Reading(
        is_stage=np.ones(width.shape, dtype=np.bool_),
        can_move=(busy + cpu > 0.002) & (bounds[None, :, 1] > bounds[None, :, 0]),
        width=width,
        low=bounds[None, :, 0],
        high=bounds[None, :, 1],
        busy=busy,
        starved=starved,
        blocked=blocked,
        cpu=cpu,
        run_delay=run_delay,
        fill=fill,
        room_bytes=room_bytes,
        room_error=np.array([FIRST_ROOM_ERROR]),
        samples_per_s=np.array([whole[0]]),
        wait_share=np.array([whole[1]]),
        cpus=np.array([budget.cpus]),
        others=np.array([others]),
        cpu_used=np.array([cpu.sum() + whole[2]]),
        memory_bytes=np.array([float(budget.memory_bytes)]),
        memory_limit_bytes=np.array([float(budget.memory_limit_bytes)]),
        noise=np.array([whole[3]]),
        is_valid=np.array([is_sound]),
    )
    return reading if is_sound else silenced(reading)


def silenced(reading: Reading) -> Reading:
    """The reading with what is not finite set to zero and `is_valid` False."""
    clean: dict[str, Floats | Bools] = {}
    for f in fields(reading):
        array = getattr(reading, f.name)
        is_limit = f.name == "memory_limit_bytes"
        clean[f.name] = array if is_limit or array.dtype == np.bool_ else np.nan_to_num(array, posinf=0.0, neginf=0.0)
    clean["is_valid"] = np.zeros_like(reading.is_valid)
    return Reading(**clean)  # type: ignore[arg-type]  # one dict for arrays of two dtypes


def _stage_row(stage: StageStats, time_s: float) -> tuple[float, ...]:
    width = max(1, stage.live_workers)
    fill = (stage.num_in_flight / stage.max_in_flight) if stage.max_in_flight > 0 else 0.0
    room = stage.item_bytes * max(1.0, stage.max_in_flight / width)
    states = (stage.busy_s, stage.starved_s, stage.blocked_s, stage.cpu_s, stage.run_delay_s)
    return (float(width), *(state / time_s for state in states), min(1.0, fill), room)
