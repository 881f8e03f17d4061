"""A flow of two stages that is played, not run: its clock, its meters and a tuner of it."""

import numpy as np

from lightning_intune.control import Tuner, make_agent
from lightning_intune.control.budget import BudgetReading
from lightning_intune.knobs import Bounds, Knob
from lightning_intune.meters import FlowStats, StageStats


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FixedBudget:
    def __init__(self, cpus=8.0):
        self.reading = BudgetReading(cpus=cpus, memory_bytes=10**8, memory_limit_bytes=10**10)

    def read(self):
        return self.reading


class Flow:
    """Two stages whose workers each finish an item in 10 and 40 ms; widths follow after `lag` steps."""

    def __init__(self, clock, lag=0):
        self.clock, self.lag = clock, lag
        self.targets, self.lives = [1, 1], [1, 1]
        self.costs = [0.010, 0.040]
        self.totals = np.zeros((2, 4))
        self.items = 0.0
        self.num_reads = 0
        self.poison = None

    @property
    def knobs(self):
        return [
            Knob(
                stage=name,
                bounds=Bounds(low=1, high=16),
                target=lambda at=at: self.targets[at],
                live=lambda at=at: self.lives[at],
                turn=lambda width, at=at: self.targets.__setitem__(at, width),
            )
            for at, name in enumerate(("read", "decode"))
        ]

    def advance(self):
        rate = min(width / max(cost, 1e-9) for width, cost in zip(self.lives, self.costs, strict=True))
        step_s = 1.0 / min(rate, 8.0 / sum(self.costs))  # 8 cores
        self.clock.now += step_s
        self.items += 1
        for at, cost in enumerate(self.costs):
            idle = self.lives[at] * step_s - cost
            self.totals[at] += (cost, idle, 0.0, cost)
        if self.lag > 0:
            self.lag -= 1
        else:
            self.lives = list(self.targets)

    def read(self):
        self.num_reads += 1
        stages = tuple(
            StageStats(
                name=name,
                lane="thread",
                num_items=int(self.items),
                busy_s=self.poison if self.poison is not None else busy,
                starved_s=starved,
                blocked_s=blocked,
                cpu_s=cpu,
                run_delay_s=0.0,
                target_workers=self.targets[at],
                live_workers=self.lives[at],
                min_workers=1,
                max_workers=16,
                num_in_flight=1,
                max_in_flight=2 * self.lives[at],
                num_ready=0,
                bytes_ready=0,
                item_bytes=1e5,
            )
            for at, (name, (busy, starved, blocked, cpu)) in enumerate(
                zip(("read", "decode"), self.totals.tolist(), strict=True)
            )
        )
        return FlowStats(
            time_s=self.clock.now,
            num_batches=int(self.items),
            num_samples=int(self.items),
            wait_s=self.clock.now,
            process_cpu_s=float(self.totals[:, 3].sum()),
            stages=stages,
        )


def tuned(flow, **kwargs):
    kwargs.setdefault("agent", make_agent("model"))
    return Tuner(knobs=flow.knobs, budget=FixedBudget(), clock=flow.clock, turn_interval_s=0.5, **kwargs)


def run(tuner, flow, steps):
    decisions = []
    for _ in range(steps):
        flow.advance()
        decision = tuner.step(flow.read)
        if decision is not None:
            decisions.append(decision)
    return decisions
