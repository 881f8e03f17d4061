"""When a turn begins and when it is due."""

import pytest

from lightning_intune.control import Tuner, make_agent
from lightning_intune.control.turn import Phase, TurnTimer
from lightning_intune.errors import ConfigError
from tests.control.played import Clock, Flow


def test_a_turn_begins_when_buffers_have_settled_but_is_not_waited_for_more_than_two_intervals():
    timer = TurnTimer(0.5)
    timer.restart(0.0, flush_steps=40)
    assert [timer.tick(0.01 * step) for step in range(1, 40)] == [Phase.SETTLING] * 39
    assert timer.tick(0.40) is Phase.STARTS
    timer.restart(0.0, flush_steps=10**6)
    assert timer.tick(0.99) is Phase.SETTLING
    assert timer.tick(1.0) is Phase.STARTS


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_a_turn_of_no_time_is_refused(interval):
    flow = Flow(Clock())
    with pytest.raises(ConfigError, match="is no time"):
        Tuner(agent=make_agent("model"), knobs=flow.knobs, turn_interval_s=interval)


def ticks(timer, step_s, times):
    """The times at which a turn of steps of these lengths is due, from 0 on; the timer goes on as a tuner at rest."""
    now_s, due = 0.0, []
    for _ in range(times):
        now_s += step_s(now_s)
        if timer.tick(now_s) is Phase.DUE:
            due.append(now_s)
            timer.measure(now_s, rests=True)
    return due


def test_auto_ends_a_turn_at_half_a_second_where_the_rate_is_steady_and_later_where_it_is_not():
    steady, shaky = TurnTimer("auto"), TurnTimer("auto")
    for timer in (steady, shaky):
        timer.measure(0.0)
    assert ticks(steady, lambda _: 0.01, 60) == [pytest.approx(0.5)]
    # One step in ten takes ten times as long: 13 ms on average, give or take 27. The 4 % would take 2,700 steps.
    lengths = iter([0.1 if at % 10 == 9 else 0.01 for at in range(200)])
    assert ticks(shaky, lambda _: next(lengths), 200)[0] == pytest.approx(2.0, abs=0.1)


def test_at_rest_auto_takes_its_time_until_steps_take_another_time():
    timer = TurnTimer("auto")
    timer.measure(0.0)
    due = ticks(timer, lambda now_s: 0.01 if now_s < 3.495 else 0.04, 500)
    assert due[:2] == [pytest.approx(0.5), pytest.approx(2.5, abs=0.06)]
    # The third turn has 100 steps of 10 ms before 4 of 40 ms make its mean 11 % longer; that is to be thrice its error.
    assert 3.6 < due[2] < 4.0


def test_auto_leaves_turns_that_cost_much_further_apart():
    timer = TurnTimer("auto")
    timer.spent(0.8)  # the first turn imports and opens files
    assert timer.interval_s == 0.5
    timer.spent(0.005)
    assert timer.interval_s == pytest.approx(0.8)
    timer.spent(0.004, waits=False)  # training does not wait: what can a turn gain?
    assert timer.interval_s == pytest.approx(1.6)
    timer.spent(0.001)
    assert timer.interval_s == 0.5
    for _ in range(2):
        timer.spent(0.1)
    assert timer.interval_s == 2.0
    given = TurnTimer(0.25)
    for _ in range(2):
        given.spent(0.1)
    assert given.interval_s == 0.25


def test_a_turn_of_given_length_is_as_long_at_rest():
    timer = TurnTimer(0.25)
    timer.measure(0.0)
    assert ticks(timer, lambda _: 0.01, 100) == [pytest.approx(0.25 * turn) for turn in (1, 2, 3, 4)]
