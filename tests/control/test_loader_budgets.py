"""Several loaders of one process: they share its CPUs and memory; who stands still leaves its part to the others."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_intune.control import SimulatedBudget, SimulatedPipeline, Tuner, make_agent
from lightning_intune.control.budget import BudgetReading
from lightning_intune.control.loader_budgets import LoaderBudgets
from lightning_intune.control.reading import live_reading
from lightning_intune.control.shared_budget import Demand, SharedBudget, demand_of
from lightning_intune.control.worlds import Ranges
from lightning_intune.meters import FlowStats, StageStats

GIB = 1 << 30


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Whole(SharedBudget):
    def __init__(self):
        self.told, self.num_rests = [], 0

    def read(self):
        return BudgetReading(cpus=8.0, memory_bytes=2 * GIB, memory_limit_bytes=8 * GIB)

    def tell(self, demand):
        self.told.append(demand)

    def rest(self):
        self.num_rests += 1


def turn(clock, parts, needs):
    """Both loaders' turns, half a second in all: the CPUs each read before it told its need."""
    read = []
    clock.now += 0.5
    for part, cpus in zip(parts, needs, strict=True):
        read.append(part.read().cpus)
        part.tell(Demand(cpus=cpus, memory_bytes=GIB, thread_cpus=cpus / 2))
    return read


@pytest.fixture
def two():
    clock, whole = Clock(), Whole()
    budgets = LoaderBudgets(whole, clock=clock)
    return clock, whole, [budgets.part("a"), budgets.part("b")]


def test_a_single_loader_has_all_of_it(two):
    _, whole, (first, _) = two
    assert first.read() == whole.read()


def test_two_loaders_have_half_each_until_their_needs_are_known_and_then_by_need(two):
    clock, _, parts = two
    for part in parts:
        part.read()
    assert turn(clock, parts, [2.0, 20.0])[0] == 4.0
    turn(clock, parts, [2.0, 20.0])
    assert turn(clock, parts, [2.0, 20.0]) == [2.0, 6.0]


def test_memory_is_halved_in_use_and_limit_so_that_what_fits_each_fits_all(two):
    _, _, parts = two
    for part in parts:
        part.read()
    readings = [part.read() for part in parts]
    assert [reading.memory_limit_bytes for reading in readings] == [4 * GIB] * 2
    assert [reading.memory_bytes for reading in readings] == [GIB] * 2


def test_a_loader_that_stands_still_leaves_its_part_to_the_other_and_has_it_again_at_once(two):
    clock, whole, parts = two
    for _ in range(3):
        turn(clock, parts, [4.0, 4.0])
    parts[1].rest()
    assert parts[0].read().cpus == 8.0
    assert whole.num_rests == 0
    assert parts[1].read().cpus == 4.0
    assert parts[0].read().cpus == 4.0
    for part in parts:
        part.rest()
    assert whole.num_rests == 1


def test_a_loader_from_which_nothing_is_heard_loses_its_part(two):
    clock, _, parts = two
    for _ in range(3):
        turn(clock, parts, [4.0, 4.0])
    for _ in range(25):  # 12.5 s
        turn(clock, parts[:1], [4.0])
    assert parts[0].read().cpus == 8.0


def test_the_sum_goes_on_to_whoever_shares_the_whole(two):
    clock, whole, parts = two
    for _ in range(2):
        turn(clock, parts, [2.0, 3.0])
    assert whole.told[-1] == Demand(cpus=5.0, memory_bytes=2 * GIB, thread_cpus=2.5)


def stats(*, cpu_s, process_cpu_s, wait_s=0.0):
    stage = StageStats(
        name="read", lane="thread", num_items=100, busy_s=cpu_s, starved_s=0.0, blocked_s=0.0, cpu_s=cpu_s,
        run_delay_s=0.0, target_workers=1, live_workers=1, min_workers=1, max_workers=8, num_in_flight=1,
        max_in_flight=2, num_ready=0, bytes_ready=0, item_bytes=1e3,
    )  # fmt: skip
    return FlowStats(
        time_s=2.0, num_batches=100, num_samples=100, wait_s=wait_s, process_cpu_s=process_cpu_s, stages=(stage,)
    )


def test_a_loader_is_charged_its_own_threads_and_its_part_of_the_trainer(two):
    clock, _, parts = two
    turn(clock, parts, [2.0, 4.0])  # threads: 1 and 2 CPU seconds a second
    # Two seconds: 8 CPU seconds in all, of them 1.5 its own and 2 x 2 the other's; 2.5 are the trainer's.
    assert parts[0].own(stats(cpu_s=1.5, process_cpu_s=8.0)).process_cpu_s == pytest.approx(1.5 + 2.5 / 2)


@pytest.mark.parametrize(
    ("wait", "cpus"),
    # 2 CPU seconds in 2 s: one CPU, a tenth more, and 0.1; half as much again where the trainer mostly waits
    [(0.0, 1.2), (0.4, 0.1 + 1.1 / 0.8), (1.9, 0.1 + 1.1 * 1.5)],
    ids=["fed", "waits", "starved"],
)
def test_who_waits_for_data_could_use_more(wait, cpus):
    window = stats(cpu_s=2.0, process_cpu_s=2.0, wait_s=wait)
    knobs = SimulatedPipeline(seed=1).knobs
    reading = live_reading(window, [replace(knobs[0], stage="read")], Whole().read(), 0.05)
    assert demand_of(reading, window).cpus == pytest.approx(cpus)
    assert demand_of(reading, window).thread_cpus == pytest.approx(1.0)


def test_two_tuners_of_one_process_together_stay_within_its_cpus():
    pipelines = [SimulatedPipeline(seed=seed, ranges=Ranges(shift_chance=0.0)) for seed in (5, 6)]
    whole = SimulatedBudget(pipelines[0])
    budgets = LoaderBudgets(whole, clock=pipelines[0].clock)
    tuners = [
        Tuner(agent=make_agent("model"), knobs=pipeline.knobs, budget=budgets.part(str(at)), clock=pipeline.clock)
        for at, pipeline in enumerate(pipelines)
    ]
    decisions = {}
    for _ in range(40):
        for at, (pipeline, tuner) in enumerate(zip(pipelines, tuners, strict=True)):
            pipeline.advance()
            decisions[at] = tuner.step(pipeline.read) or decisions.get(at)
    assert not any(tuner.has_failed for tuner in tuners)
    assert np.sum([decision.cpus for decision in decisions.values()]) == pytest.approx(whole.read().cpus, rel=0.16)
