"""How fast a simulated pipeline runs at given widths: a fluid model of a closed, staged pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, ratio
from lightning_intune.control.world import World

_BISECTIONS = 20
"""Halvings of the rate's bracket: a relative error below 1e-6."""

_CONVOY = 0.008
_LOCK_QUEUE = 0.3
"""Waiting for the GIL beside that of an open queue: few threads, of which each holds it in turn."""

_THRASH_KNEE = 2.0
"""Threads beyond the CPUs, over the CPUs, at which half of `thrash` is paid: caches and allocators run over."""


@final
@dataclass(frozen=True, kw_only=True)
class Load:
    """What one delivered batch costs when batches flow at some rate: seconds per batch and stage [B, N]."""

    cpu_s: Floats
    """CPU, contention included."""
    run_delay_s: Floats
    """Runnable, waiting for a core."""
    service_s: Floats
    """All that a worker is busy for."""
    hidden_s: Floats
    """Part of `service_s` that the stage's meter books as waiting for upstream."""
    cpu_share: Floats
    """[B] the share of the CPUs in use, trainer included."""
    is_possible: Bools
    """[B] whether CPUs, trainer and GIL can carry the rate at all."""


def load_at(world: World, widths: Floats, rate: Floats) -> Load:
    """The cost of a batch at `rate` [B] with `widths` [B, N]. Grows with `rate`, whatever the contention."""
    bandwidth, switching, disk, smt, coherence, cliff, threads, heat, crowding, preemption, thrash = world.contention.T
    x = rate[:, None]
    raw = x[:, 0] * (world.cpu_s.sum(1) + world.trainer_cpu_s) / world.free_cpus
    cpu_part = ratio(world.cpu_s, world.cpu_s + world.latency_s)
    crowd = (widths * cpu_part).sum(1) / world.free_cpus
    over = np.maximum(0.0, crowd - 1.0)
    inflation = (
        1.0
        + bandwidth * np.minimum(raw, 1.0)
        + switching * over
        + crowding * np.log2(np.maximum(1.0, crowd))
        + thrash * over**3 / (over**3 + _THRASH_KNEE**3)
        + smt * np.clip(2.0 * raw - 1.0, 0.0, 1.0)
        + threads * np.minimum(np.log2(1.0 + widths.sum(1) / world.free_cpus), 4.0)
        + heat * np.minimum(raw, 1.0) ** 3
        + coherence * np.minimum((widths.sum(1) / world.free_cpus) ** 2, 16.0)
    )
    cpu_s = world.cpu_s * inflation[:, None]
    share = x[:, 0] * (cpu_s.sum(1) + world.trainer_cpu_s) / world.free_cpus
    # A thread that asks for the GIL makes its holder switch: every contender lengthens the holding a little.
    contenders = (widths * (world.gil_share > 0)).sum(1)
    held_s = (world.gil_share * cpu_s).sum(1) * (1.0 + _CONVOY * np.clip(contenders - 1.0, 0.0, 40.0))
    delay = world.burstiness * queue_shape(share, world.free_cpus)
    # Whoever waits for a core with the GIL in hand keeps all others waiting: crowded CPUs are then not even filled.
    gil = x[:, 0] * held_s * (1.0 + preemption * delay)
    reading = x[:, 0] * world.latency_s.sum(1)
    io = 1.0 + disk * reading / 8.0 + cliff * np.maximum(0.0, reading / 8.0 - 1.0) ** 2
    run_delay_s = cpu_s * delay[:, None]
    lock_wait_s = world.gil_share * cpu_s * (_LOCK_QUEUE * gil / np.maximum(1.0 - gil, TINY))[:, None]
    alone_s = cpu_s + run_delay_s + lock_wait_s + world.latency_s * io[:, None]
    # Busy workers wait for each other at the stage's own lock: n = x * (alone + lock * n).
    service_s = alone_s / np.maximum(1.0 - x * world.lock_s, 1e-3)
    service_s = service_s * (1.0 + world.jitter / (1.0 + world.buffer_items + widths))
    possible = (share < 1.0) & (gil < 1.0) & (rate * world.trainer_s <= 1.0) & (x * world.lock_s < 1.0).all(1)
    return Load(
        cpu_s=cpu_s,
        run_delay_s=run_delay_s,
        service_s=service_s,
        hidden_s=lock_wait_s * world.gil_hidden[:, None],
        cpu_share=share,
        is_possible=possible,
    )


def solve_rate(world: World, widths: Floats) -> Floats:
    """Batches/s [B] that `widths` [B, N] deliver: the highest rate at which every stage keeps up."""
    low = np.zeros(world.num_pipelines)
    high = rate_bound(world, widths)
    for _ in range(_BISECTIONS):
        rate = 0.5 * (low + high)
        load = load_at(world, widths, rate)
        keeps_up = load.is_possible & (rate[:, None] * load.service_s <= widths).all(1)
        low = np.where(keeps_up, rate, low)
        high = np.where(keeps_up, high, rate)
    return low


def rate_bound(world: World, widths: Floats) -> Floats:
    """[B] a rate that cannot be exceeded: the trainer's, the CPUs', each stage's without any contention."""
    alone_s = np.maximum(world.cpu_s + world.latency_s, TINY)
    stages = np.where(world.is_stage, widths / alone_s, np.inf).min(1)
    cpus = world.free_cpus / np.maximum(world.cpu_s.sum(1) + world.trainer_cpu_s, TINY)
    return np.minimum(np.minimum(stages, cpus), 1.0 / np.maximum(world.trainer_s, TINY))


def memory_bytes(world: World, widths: Floats) -> Floats:
    """[B] bytes held with every buffer full."""
    return world.base_bytes + (widths * world.room_bytes).sum(1)


def queue_shape(share: Floats, cpus: Floats) -> Floats:
    """[B] run-queue wait over CPU time for memoryless bursts, at CPU utilisation `share`.

    Sakasegawa (1977), approximation of M/M/c: share^(sqrt(2(c+1))-1) / (c (1-share)).
    """
    busy = np.clip(share, 0.0, 1.0 - 1e-6)
    return busy ** (np.sqrt(2.0 * (cpus + 1.0)) - 1.0) / (cpus * (1.0 - busy))
