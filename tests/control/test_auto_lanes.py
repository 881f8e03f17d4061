"""A real stage of `method="auto"` under a real tuner: only the meters' readings and the clock are made up."""

from dataclasses import replace

import pytest

from lightning_intune.control import Tuner, make_agent
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from tests.control.played import Clock, FixedBudget


class LooksLikeTheGil:
    """A loader's true meters, but time passes by `step_s` of its lane, and in threads one lock is what limits."""

    def __init__(self, loader, step_s):
        self.loader, self.step_s, self.clock = loader, step_s, Clock()
        self.busy_s = self.cpu_s = 0.0

    @property
    def lane(self):
        return self.loader.stages["parse"].stats().lane

    def step(self):
        step_s = self.step_s[self.lane]
        self.clock.now += step_s
        self.busy_s += 3.0 * step_s
        self.cpu_s += (0.95 if self.lane == "thread" else 2.0) * step_s

    def read(self):
        stats = self.loader.stats()
        stage = replace(
            stats.stages[0], busy_s=self.busy_s, cpu_s=self.cpu_s, starved_s=0.0, blocked_s=0.0, run_delay_s=0.0
        )
        return replace(
            stats, time_s=self.clock.now, wait_s=self.clock.now, process_cpu_s=self.clock.now, stages=(stage,)
        )


@pytest.mark.parametrize(
    ("process_s", "places"), [(0.01, ["process"]), (0.04, ["process", "thread"])], ids=["faster", "slower"]
)
def test_the_tuner_moves_it_once_and_back_if_that_was_worse_and_no_item_notices(process_s, places):
    parse = ElasticMapper(IterableSource(range(10**6)), lambda n: 3 * n, num_workers=3, method="auto", name="parse")
    taken, moves = [], []
    with ElasticLoader(parse) as loader:
        meters = LooksLikeTheGil(loader, {"thread": 0.02, "process": process_s})
        tuner = Tuner(agent=make_agent("model"), knobs=loader.knobs, budget=FixedBudget(4.0), clock=meters.clock)
        for item in loader:
            taken.append(item)
            meters.step()
            decision = tuner.step(meters.read)
            if decision is not None and decision.lanes:
                moves.append(decision.lanes["parse"])
            if len(taken) == 1500:
                break
        assert meters.lane == places[-1]
    assert moves == places
    assert taken == [3 * n for n in range(1500)]
    assert not tuner.has_failed
