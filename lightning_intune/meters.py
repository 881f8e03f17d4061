"""Window 1, numbers out: what the flow shows to whoever decides or draws. Frozen values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class StageStats:
    """One stage since its run began. Counters only grow; two readings subtract with `since`.

    Worker seconds fall into three states: `busy_s` in the stage's function (or waiting for the lane
    that runs it), `starved_s` waiting for an upstream item, `blocked_s` waiting for room downstream.
    `starved_s` near zero with `busy_s` high: this stage limits. `blocked_s` high: it is wider than needed.
    """

    name: str
    lane: str
    """Where the function runs: `thread`, `process` or `ray`."""
    num_items: int
    """Items the function has finished."""
    busy_s: float
    starved_s: float
    blocked_s: float
    cpu_s: float
    """CPU seconds of the stage's workers: thread time, or the child process's own."""
    run_delay_s: float
    """Seconds its workers were runnable but waited for a core (schedstat); 0.0 where the OS has no such count."""
    target_workers: int
    """The width asked for."""
    live_workers: int
    """The width that is true now."""
    min_workers: int
    max_workers: int
    num_in_flight: int
    """Items claimed from upstream and not yet delivered downstream."""
    max_in_flight: int
    """The bound on `num_in_flight` at this width."""
    num_ready: int
    """Items finished and waiting for the consumer."""
    bytes_ready: int
    """Measured size of those, 0 until the stage has measured one."""
    item_bytes: float
    """Mean measured size of a finished item, 0.0 until one was measured."""
    num_retried: int = 0
    """Times an item was tried again after its function failed, where the stage's `on_error` says so."""
    num_skipped: int = 0
    """Items left out after it failed, where `on_error` says so."""

    def since(self, before: StageStats) -> StageStats:
        """The same stage with its counters as growth since `before`; gauges stay as they are."""
        return StageStats(
            name=self.name,
            lane=self.lane,
            num_items=self.num_items - before.num_items,
            busy_s=self.busy_s - before.busy_s,
            starved_s=self.starved_s - before.starved_s,
            blocked_s=self.blocked_s - before.blocked_s,
            cpu_s=self.cpu_s - before.cpu_s,
            run_delay_s=self.run_delay_s - before.run_delay_s,
            target_workers=self.target_workers,
            live_workers=self.live_workers,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            num_in_flight=self.num_in_flight,
            max_in_flight=self.max_in_flight,
            num_ready=self.num_ready,
            bytes_ready=self.bytes_ready,
            item_bytes=self.item_bytes,
            num_retried=self.num_retried - before.num_retried,
            num_skipped=self.num_skipped - before.num_skipped,
        )


@final
@dataclass(frozen=True, kw_only=True)
class FlowStats:
    """The whole pipeline at `time_s` of one clock. `since` gives a window between two readings."""

    time_s: float
    """The clock's reading; in a window, its length."""
    num_batches: int
    """Batches delivered to the trainer."""
    num_samples: int
    """Samples in them; equals `num_batches` where batches do not tell their size."""
    wait_s: float
    """Seconds the trainer waited inside `next(loader)`."""
    process_cpu_s: float
    """CPU seconds of this process, all threads, children not included."""
    stages: tuple[StageStats, ...]
    """In the order the data flows."""
    startup_cpu_s: float = 0.0
    """CPU seconds of what starts worker processes (their imports): ours, and no part of what a sample costs."""

    def since(self, before: FlowStats) -> FlowStats:
        """The window from `before` to here. Both readings must show the same stages, else ValueError."""
        names = [stage.name for stage in before.stages]
        if names != [stage.name for stage in self.stages]:
            raise ValueError(f"meters of other stages: {names}, and {[s.name for s in self.stages]}")
        return FlowStats(
            time_s=self.time_s - before.time_s,
            num_batches=self.num_batches - before.num_batches,
            num_samples=self.num_samples - before.num_samples,
            wait_s=self.wait_s - before.wait_s,
            process_cpu_s=self.process_cpu_s - before.process_cpu_s,
            stages=tuple(now.since(old) for now, old in zip(self.stages, before.stages, strict=True)),
            startup_cpu_s=self.startup_cpu_s - before.startup_cpu_s,
        )

    @property
    def samples_per_s(self) -> float:
        """Of a window: samples delivered per second, 0.0 for an empty one."""
        return self.num_samples / self.time_s if self.time_s > 0 else 0.0

    @property
    def wait_share(self) -> float:
        """Of a window: the share of its time that the trainer waited for data, in [0, 1]."""
        return min(1.0, self.wait_s / self.time_s) if self.time_s > 0 else 0.0

    @property
    def cpu_s_per_sample(self) -> float:
        """Of a window: the stages' CPU seconds per delivered sample, 0.0 for an empty one."""
        cpu_s = sum(stage.cpu_s for stage in self.stages)
        return cpu_s / self.num_samples if self.num_samples > 0 else 0.0

    def roofline_samples_per_s(self, cores: float) -> float:
        """Of a window: the samples/s that `cores` CPUs could deliver if none ever waited.

        `cores` / CPU seconds per sample (DESIGN, section 3); infinite while no CPU was metered.
        """
        per_sample = self.cpu_s_per_sample
        return cores / per_sample if per_sample > 0 else float("inf")
