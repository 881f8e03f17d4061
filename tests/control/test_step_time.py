"""What busy CPUs cost the trainer's own steps, and what is made of it when widths are compared."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.control.fleet import Fleet
from lightning_intune.control.guard import Guard, Why
from lightning_intune.control.knowledge import Knowledge
from lightning_intune.control.step_time import StepTime
from lightning_intune.control.worlds import Ranges

HELD, MOVED = np.array([True]), np.array([False])
QUIET = Fleet.draw(1, Ranges(stages=(3, 3), noise=(0.01, 0.011), shift_chance=0.0), np.random.default_rng(4)).read()


def turn(rate, wait, **changes):
    """A turn with `rate` samples a second, for `wait` of which the trainer waited for data."""
    return replace(
        QUIET, samples_per_s=np.array([rate]), wait_share=np.array([wait]), noise=np.array([0.01]), **changes
    )


def test_the_time_that_slower_steps_cost_is_told_as_a_share_of_all_time():
    steps = StepTime(1)
    # 100 samples/s, half of the time waiting: 5 ms of the trainer's own per sample
    assert steps.lost(turn(100.0, 0.5), MOVED)[0] == 0.0
    # 100 samples/s with a quarter waiting: 7.5 ms, of which 5.05 ms, forgotten by a hundredth, and 5 % are allowed
    assert steps.lost(turn(100.0, 0.25), MOVED)[0] == pytest.approx(0.1 * (7.5 - 1.05 * 5.05))


def test_one_slow_turn_at_the_same_widths_counts_half():
    steps = StepTime(1)
    steps.lost(turn(100.0, 0.5), MOVED)
    assert steps.lost(turn(100.0, 0.25), HELD)[0] == pytest.approx(0.1 * (6.25 - 1.05 * 5.05))


@given(own_s=st.floats(1e-5, 1e-2), rates=st.lists(st.floats(0.1, 99.0), min_size=1, max_size=12), held=st.booleans())
def test_a_trainer_whose_own_time_stays_loses_nothing_however_long_it_waits(own_s, rates, held):
    steps = StepTime(1)
    for rate in rates:
        assert steps.lost(turn(rate, 1.0 - rate * own_s), np.array([held]))[0] == pytest.approx(0.0, abs=1e-9)


@given(turns=st.lists(st.tuples(st.floats(0.0, 1e6), st.floats(0.0, 1.0)), min_size=1, max_size=12), held=st.booleans())
def test_what_is_lost_is_a_share(turns, held):
    steps = StepTime(1)
    for rate, wait in turns:
        lost = steps.lost(turn(rate, wait, is_valid=np.array([rate > 0])), np.array([held]))[0]
        assert 0.0 <= lost <= 1.0


def test_steps_count_from_anew_after_a_shift():
    steps = StepTime(1)
    steps.lost(turn(100.0, 0.5), MOVED)
    steps.reset(np.array([True]))
    assert steps.lost(turn(100.0, 0.0), MOVED)[0] == 0.0


def at_widths(width, rate, wait):
    widths = np.where(QUIET.is_stage, width, 0.0)
    return turn(rate, wait, width=widths, low=np.minimum(widths, 1.0), high=np.where(QUIET.is_stage, 64.0, 0.0))


def test_of_widths_with_equal_rates_those_with_the_quicker_steps_are_best_and_the_others_are_taken_back():
    knowledge, guard = Knowledge(1, QUIET.num_stages), Guard(1)
    for _ in range(3):
        situation = knowledge.observe(at_widths(2.0, 100.0, 0.5))
    # The same rate with thrice the workers, but the trainer's own time went from 5 to 9 ms.
    for _ in range(2):
        situation = knowledge.observe(at_widths(6.0, 100.0, 0.1))
    assert situation.lost[0] > 0.2
    assert situation.best_widths[0].max() == 2.0
    verdict = guard.judge(situation, situation.reading.width, (np.zeros(1), np.zeros(1)))
    assert (verdict.why[0], verdict.widths[0].max()) == (Why.REVERTED, 2.0)


def test_wider_that_is_faster_is_kept_although_steps_are_a_little_slower():
    knowledge = Knowledge(1, QUIET.num_stages)
    for _ in range(3):
        knowledge.observe(at_widths(2.0, 100.0, 0.5))
    situation = knowledge.observe(at_widths(6.0, 130.0, 0.28))  # 5.5 ms of its own instead of 5
    assert situation.best_widths[0].max() == 6.0
