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


def test_a_thread_that_waits_for_a_core_before_it_is_busy_is_no_shift():
    # Late wake-ups book more run delay than the stage was busy for: 2 ms, of which 5 were waited for.
    assert not any(shifts([turn(4.0, 2.0), *[turn(4.0, 2.0, delay_ms=5.0)] * 4, turn(4.0, 2.0)]))


def test_costs_that_change_with_every_move_are_rarely_taken_for_a_shift():
    # Six times the cost at a width of 6, as where memory is no longer reused: believed once in four turns.
    found = shifts([turn(2.0, 1.0), turn(6.0, 6.0)] * 10)
    assert found[1]
    assert sum(found) <= 5


def test_a_shift_is_noticed_among_such_moves_once_widths_are_held():
    moves = [turn(2.0, 1.0), turn(6.0, 4.0)] * 4
    assert shifts([*moves, turn(6.0, 4.0), turn(6.0, 4.0), turn(6.0, 16.0)])[-1]
