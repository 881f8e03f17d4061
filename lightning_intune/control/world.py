"""Simulated pipelines as numbers: what each stage costs, what they fight over, and what changes midway."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self, final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats, Ints

CROWDS = ("crowding", "preemption", "thrash")
"""What more threads than CPUs cost beyond the `switching` between them; `thrash` is never met in training."""
CONTENTIONS = ("bandwidth", "switching", "disk", "smt", "coherence", "disk_cliff", "threads", "heat", *CROWDS)
"""What stages fight over; `physics` says how each works."""
TRAINED = ("bandwidth", "switching", "disk")
ONLY_TRAINED = ("threads", "heat")
"""Met in training only: whoever knew three kinds by heart was lost among others."""
HELD_OUT = ("smt", "coherence", "disk_cliff")
"""Never met in training."""


@final
@dataclass(frozen=True, kw_only=True)
class World:
    """B pipelines of up to N stages. Costs are seconds per delivered batch; all arrays [B] or [B, N].

    `cpu_s` computes, `latency_s` waits without a core, `gil_share` of `cpu_s` is spent holding one
    lock common to all thread stages, `lock_s` is added per concurrently busy worker of the stage.
    `jitter` is the squared variation of service times, softened by `buffer_items` behind each worker.
    `under_metered` is the share of `cpu_s` that the stage's CPU meter misses (native thread pools).
    """

    is_stage: Bools
    cpu_s: Floats
    latency_s: Floats
    gil_share: Floats
    lock_s: Floats
    jitter: Floats
    buffer_items: Floats
    under_metered: Floats
    room_bytes: Floats
    """Bytes one more worker of the stage can hold in flight."""
    high: Floats
    """Most workers a stage may have; at least 1."""
    trainer_s: Floats
    trainer_cpu_s: Floats
    cpus: Floats
    others: Floats
    """CPUs that other jobs on the machine keep busy."""
    gil_hidden: Floats
    """Share of the waiting for the common lock that happens outside the stage's function, unseen by `busy`."""
    burstiness: Floats
    """Run-queue wait beside that of memoryless CPU bursts; a closed pipeline's is smaller."""
    base_bytes: Floats
    limit_bytes: Floats
    noise: Floats
    """Relative standard deviation of one turn's measured rate."""
    contention: Floats
    """Strength of each of `CONTENTIONS`, [B, 11]."""

    @property
    def num_pipelines(self) -> int:
        return int(self.is_stage.shape[0])

    @property
    def num_stages(self) -> int:
        """N, the padded number of stages."""
        return int(self.is_stage.shape[1])

    @property
    def free_cpus(self) -> Floats:
        """[B] what is left for this job; against its neighbours it gets at least four tenths."""
        return np.maximum(self.cpus - self.others, 0.4 * self.cpus)

    def take(self, rows: Bools | Ints) -> Self:
        """The pipelines chosen by `rows`."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def put(self, rows: Bools, other: World) -> Self:
        """Return the world with `other`'s pipelines in the chosen rows, as many as are chosen."""
        out: dict[str, Floats | Bools] = {}
        for f in fields(self):
            array = getattr(self, f.name).copy()
            array[rows] = getattr(other, f.name)
            out[f.name] = array
        return type(self)(**out)  # type: ignore[arg-type]  # one dict for arrays of two dtypes


@final
@dataclass(frozen=True, kw_only=True)
class Shift:
    """What changes during an episode: at turn `turn` [B] (-1: never), costs and CPUs are multiplied."""

    turn: Floats
    cpu_factor: Floats
    latency_factor: Floats
    cpus_factor: Floats

    def apply(self, world: World, rows: Bools) -> World:
        """`world` after the shift in the chosen rows."""
        at_stage = rows[:, None]
        changes = {
            "cpu_s": np.where(at_stage, world.cpu_s * self.cpu_factor, world.cpu_s),
            "latency_s": np.where(at_stage, world.latency_s * self.latency_factor, world.latency_s),
            "cpus": np.where(rows, np.maximum(1.0, world.cpus * self.cpus_factor), world.cpus),
        }
        kept = {f.name: getattr(world, f.name) for f in fields(world) if f.name not in changes}
        return World(**kept, **changes)

    def take(self, rows: Bools | Ints) -> Shift:
        """Return the shifts of the pipelines chosen by `rows`."""
        return Shift(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def put(self, rows: Bools, other: Shift) -> Shift:
        """Return these with `other`'s shifts in the chosen rows."""
        out: dict[str, Floats] = {}
        for f in fields(self):
            array = getattr(self, f.name).copy()
            array[rows] = getattr(other, f.name)
            out[f.name] = array
        return Shift(**out)
