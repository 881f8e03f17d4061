"""A stage's running totals, over all its runs. Written under the owning run's lock only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from lightning_intune.flow.worker import BLOCKED, BUSY, STARVED, Worker

_SMOOTHING = 0.1
_STALL_S = 0.02


@final
class StageMeter:
    """Counters of one stage; `busy_s`, `starved_s` and `blocked_s` of workers still in a phase come on top."""

    def __init__(self, tiny_s: float, tiny_bytes: int) -> None:
        self._tiny_s, self._tiny_bytes = tiny_s, tiny_bytes
        self.num_items = 0
        self.num_retried = 0
        self.num_skipped = 0
        self.busy_s = 0.0
        self.starved_s = 0.0
        self.blocked_s = 0.0
        self.cpu_s = 0.0
        self.run_delay_s = 0.0
        self.service_s = math.inf
        """Smoothed seconds the function takes per item; infinite before the first."""
        self.item_bytes = 0.0
        self.input_bytes = 0
        """Of what goes in; measured now and then, and only for what crosses into a lane."""
        self.tiny = False
        """Items so quick and small that waking a second worker costs more than it brings."""

    def settle(self, worker: Worker, phase: str, now_s: float) -> None:
        """Book the time `worker` spent in its phase, and begin the next one."""
        spent_s = now_s - worker.since_s
        if worker.phase is BUSY:
            self.busy_s += spent_s
        elif worker.phase is STARVED:
            self.starved_s += spent_s
        elif worker.phase is BLOCKED:
            self.blocked_s += spent_s
        worker.phase, worker.since_s = phase, now_s

    def note_items(self, count: int, spent_s: float) -> None:
        """`count` items are done and took `spent_s` together."""
        self.num_items += count
        each_s, mean_s = spent_s / count, self.service_s
        if mean_s is math.inf:
            self.service_s = each_s
        else:
            # One item in a thousand waits 5 ms for the GIL, which must not make tiny items look slow: up to 20 ms
            # an item counts at most as 4 means. What has truly become slower still shows within a dozen items.
            if spent_s < _STALL_S:
                each_s = min(each_s, 4.0 * mean_s + 1e-6)
            self.service_s = mean_s + _SMOOTHING * (each_s - mean_s)
        is_quick = self.service_s < self._tiny_s
        self.tiny = is_quick and self.most_bytes <= self._tiny_bytes

    @property
    def most_bytes(self) -> float:
        """Of an item or of what it is made from, whichever is larger."""
        return max(self.item_bytes, self.input_bytes)

    def note_bytes(self, nbytes: int) -> None:
        """A finished item was measured."""
        if self.item_bytes == 0.0:
            self.item_bytes = float(nbytes)
        else:
            self.item_bytes += _SMOOTHING * (nbytes - self.item_bytes)

    def retire(self, worker: Worker) -> None:
        """Take over what a leaving worker's thread and lanes have cost. Called by that thread."""
        self.cpu_s += worker.cpu_s()
        self.run_delay_s += worker.run_delay_s()

    def read(
        self, live: Mapping[str, float], *, live_workers: int, cpu_s: float = 0.0, run_delay_s: float = 0.0
    ) -> dict[str, Any]:
        """The counters with what is still going on (`live`: seconds by phase), as fields of `StageStats`."""
        return {
            "num_items": self.num_items,
            "busy_s": self.busy_s + live.get(BUSY, 0.0),
            "starved_s": self.starved_s + live.get(STARVED, 0.0),
            "blocked_s": self.blocked_s + live.get(BLOCKED, 0.0),
            "cpu_s": self.cpu_s + cpu_s,
            "run_delay_s": self.run_delay_s + run_delay_s,
            "live_workers": live_workers,
            "num_in_flight": 0,
            "max_in_flight": 0,
            "num_ready": 0,
            "bytes_ready": 0,
            "item_bytes": self.item_bytes,
            "num_retried": self.num_retried,
            "num_skipped": self.num_skipped,
        }
