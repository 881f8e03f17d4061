"""Meters by hand."""

from __future__ import annotations

from typing import Any

from lightning_intune.meters import FlowStats, StageStats


def stage_stats(name: str, **seconds: float) -> StageStats:
    values: dict[str, Any] = {
        "lane": "thread",
        "num_items": 10,
        "busy_s": 0.0,
        "starved_s": 0.0,
        "blocked_s": 0.0,
        "cpu_s": 0.0,
        "run_delay_s": 0.0,
        "target_workers": 2,
        "live_workers": 2,
        "min_workers": 1,
        "max_workers": 8,
        "num_in_flight": 0,
        "max_in_flight": 4,
        "num_ready": 0,
        "bytes_ready": 0,
        "item_bytes": 0.0,
    }
    return StageStats(name=name, **(values | seconds))


def window(time_s: float, *, num_samples: int, wait_s: float, stages: tuple[StageStats, ...]) -> FlowStats:
    return FlowStats(
        time_s=time_s, num_batches=10, num_samples=num_samples, wait_s=wait_s, process_cpu_s=0.0, stages=stages
    )
