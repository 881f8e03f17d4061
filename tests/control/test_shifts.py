"""What is taken for a shift of costs, and what is not."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_intune.control.fleet import Fleet
from lightning_intune.control.knowledge import Knowledge
from lightning_intune.control.worlds import Ranges

QUIET = Fleet.draw(1, Ranges(stages=(1, 1), noise=(0.01, 0.011), shift_chance=0.0), np.random.default_rng(4)).read()
ONE, TEN = np.ones((1, 1)), np.full((1, 1), 10.0)


def turn(width, cpu_ms, *, delay_ms=0.0, rate=100.0):
    """A turn of one stage that computes for `cpu_ms` per sample; `delay_ms` of them before it was busy."""
    return replace(
        QUIET, width=width * ONE, low=ONE, high=TEN, samples_per_s=np.array([rate]), noise=np.array([0.01]),
        cpu=rate * cpu_ms / 1e3 * ONE, busy=rate * cpu_ms / 1e3 * ONE, run_delay=rate * delay_ms / 1e3 * ONE,
        cpu_used=np.array([rate * cpu_ms / 1e3]),
    )  # fmt: skip


def shifts(turns):
    knowledge = Knowledge(1, 1)
    return [bool(knowledge.observe(each).has_shifted[0]) for each in turns]


@pytest.mark.parametrize("factor", [2.0, 4.0, 0.25])
def test_a_stage_that_costs_twice_as_much_at_the_same_widths_has_shifted(factor):
    assert shifts([turn(4.0, 2.0)] * 3 + [turn(4.0, 2.0 * factor)]) == [False, False, False, True]


def test_a_cost_a_third_higher_is_believed_when_the_next_turn_shows_it_as_well_and_not_for_one_turn():
    # The turn after is held against what was expected before both: the model has learnt from the first of them.
    assert shifts([turn(4.0, 2.0)] * 3 + [turn(4.0, 2.74)] * 2) == [False] * 4 + [True]
    assert not any(shifts([turn(4.0, 2.0)] * 3 + [turn(4.0, 2.74)] + [turn(4.0, 2.0)] * 3))


def test_a_thread_that_waits_for_a_core_before_it_is_busy_is_no_shift():
    # Late wake-ups book more run delay than the stage was busy for: 2 ms, of which 5 were waited for.
    assert not any(shifts([turn(4.0, 2.0), *[turn(4.0, 2.0, delay_ms=5.0)] * 4, turn(4.0, 2.0)]))


def test_a_stage_that_is_idle_has_not_shifted_however_its_times_scatter():
    # 1 % of one worker's time, or 2.5 %: waking up takes a different time each time.
    assert not any(shifts([turn(1.0, 0.1), turn(1.0, 0.25), turn(1.0, 0.05)] * 6))


@pytest.mark.parametrize(("before_ms", "after_ms"), [(0.1, 4.0), (4.0, 0.1)])
def test_a_stage_that_was_idle_or_becomes_so_has_shifted(before_ms, after_ms):
    assert shifts([turn(1.0, before_ms)] * 3 + [turn(1.0, after_ms)]) == [False, False, False, True]


def test_costs_that_change_with_every_move_are_rarely_taken_for_a_shift():
    # Six times the cost at a width of 6, as where memory is no longer reused: believed once in four turns.
    found = shifts([turn(2.0, 1.0), turn(6.0, 6.0)] * 10)
    assert found[1]
    assert sum(found) <= 5


def test_a_shift_is_noticed_among_such_moves_once_widths_are_held():
    moves = [turn(2.0, 1.0), turn(6.0, 4.0)] * 4
    assert shifts([*moves, turn(6.0, 4.0), turn(6.0, 4.0), turn(6.0, 16.0)])[-1]


def test_what_is_slow_away_from_the_best_widths_is_blamed_on_the_widths_first():
    # Half the rate at 6 workers that brought as much as 2 before: others' doing, but 2 workers will show that.
    knowledge = Knowledge(1, 1)
    seen = [turn(2.0, 1.0), turn(2.0, 1.0), turn(6.0, 1.0, rate=95.0), turn(6.0, 1.0, rate=40.0)]
    last = [knowledge.observe(each) for each in seen][-1]
    assert not last.has_shifted[0]
    assert last.best_widths[0, 0] == 2.0
    assert knowledge.observe(turn(2.0, 1.0, rate=40.0)).has_shifted[0]


def test_what_the_widths_were_blamed_for_is_the_stages_when_it_stays_at_other_widths():
    # Four times the cost at 6 workers, and at 2 as well: what was learnt of the stage before, slopes too, is forgotten.
    knowledge = Knowledge(1, 1)
    for each in (*[turn(2.0, 1.0, rate=1000.0)] * 3, turn(6.0, 1.0, rate=950.0), turn(6.0, 4.0, rate=250.0)):
        assert not knowledge.observe(each).has_shifted[0]
    assert knowledge.observe(turn(2.0, 4.0, rate=250.0)).has_shifted[0]
    assert knowledge.model.weight[0, 0] == 1.0
    assert knowledge.model.waits()[1][0, 0] == 0.0


def test_no_more_workers_are_allowed_than_the_cpus_could_keep_busy_by_far_unless_they_were_measured_as_best():
    # 2 CPUs, half of their time in the stage: 1 worker busy, 2.5 times as many and 3 more.
    two_cpus = {"cpus": np.array([2.0]), "others": np.array([0.0]), "cpu_used": np.array([2.0])}
    many = {"high": np.full((1, 1), 64.0)}
    narrow = replace(turn(1.0, 10.0), cpu=ONE, **two_cpus, **many)
    assert Knowledge(1, 1).observe(narrow).reading.high[0, 0] == 6.0
    wide = replace(narrow, width=40.0 * ONE)
    assert Knowledge(1, 1).observe(wide).reading.high[0, 0] == 40.0


def test_workers_that_wait_on_latency_are_no_crowd():
    # 50 ms of waiting for each ms of CPU: at 100/s one CPU would feed 51 workers per busy one.
    reading = replace(turn(1.0, 1.0), busy=ONE, high=np.full((1, 1), 512.0), cpus=np.array([2.0]))
    slow = replace(reading, cpu=ONE / 51, cpu_used=np.array([1.0 / 51]), samples_per_s=np.array([20.0]))
    assert Knowledge(1, 1).observe(slow).reading.high[0, 0] > 100.0
