"""What the tuner does where meters or agents fail: hold the widths, say so once, let training go on."""

import logging
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.control import make_agent
from tests.control.played import Clock, Flow, run, tuned


def test_a_failing_meter_is_logged_once_and_changes_nothing(caplog):
    flow = Flow(Clock())
    tuner = tuned(flow)

    def broken():
        raise OSError("no meters today")

    with caplog.at_level(logging.ERROR, "lightning_intune"):
        for _ in range(300):
            flow.advance()
            assert tuner.step(broken) is None
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text
    assert flow.targets == [1, 1]


def test_a_failing_agent_is_logged_once_and_training_goes_on(caplog):
    flow = Flow(Clock())
    agent = make_agent("dqn")
    agent.policy.wish = lambda *_: 1 / 0
    with caplog.at_level(logging.ERROR, "lightning_intune"):
        assert run(tuned(flow, agent=agent), flow, 300) == []
    assert len(caplog.records) == 1
    assert flow.targets == [1, 1]


def test_a_stage_that_had_nothing_to_do_in_a_turn_keeps_its_width():
    flow = Flow(Clock())
    flow.costs[0] = 0.0
    tuner = tuned(flow, agent=make_agent("dqn"))
    run(tuner, flow, 600)
    assert flow.targets[0] == 1
    assert flow.targets[1] > 4
    assert not tuner.has_failed


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_meters_that_are_not_finite_hold_the_widths(poison):
    flow = Flow(Clock())
    tuner = tuned(flow)
    run(tuner, flow, 100)
    widths = list(flow.targets)
    flow.poison = poison
    decisions = run(tuner, flow, 600)
    assert len(decisions) > 2
    assert all(decision.why in {"blind", "memory"} for decision in decisions[1:])
    assert flow.targets == widths
    assert not tuner.has_failed


def test_a_turn_without_items_holds_the_widths():
    flow = Flow(Clock())
    tuner = tuned(flow)
    run(tuner, flow, 100)
    widths = list(flow.targets)
    for _ in range(30):
        flow.clock.now += 1.0
        tuner.step(flow.read)
    assert flow.targets == widths
    assert not tuner.has_failed


METERS = st.sampled_from([0.0, -1.0, 1e-9, 1e12, float("nan"), float("inf"), -float("inf")])
FIELDS = ("busy_s", "starved_s", "blocked_s", "cpu_s", "run_delay_s", "item_bytes")


@given(
    spoilt=st.dictionaries(
        st.tuples(st.integers(0, 9), st.integers(0, 1), st.sampled_from(FIELDS)), METERS, max_size=8
    ),
    wait_s=st.dictionaries(st.integers(0, 9), METERS, max_size=3),
    name=st.sampled_from(["dqn", "model"]),
)
@settings(max_examples=15, deadline=None)
def test_whatever_the_meters_say_the_tuner_goes_on_within_its_bounds(spoilt, wait_s, name):
    flow = Flow(Clock())
    tuner = tuned(flow, agent=make_agent(name))
    turns = 0

    def read():
        stats = flow.read()
        changed = [dict[str, float](), dict[str, float]()]
        for (turn, stage, field), value in spoilt.items():
            if turn == turns:
                changed[stage][field] = value
        stages = tuple(replace(stage, **changed[at]) for at, stage in enumerate(stats.stages))
        return replace(stats, stages=stages, wait_s=wait_s.get(turns, stats.wait_s))

    for _ in range(900):
        flow.advance()
        turns += tuner.step(read) is not None
    assert not tuner.has_failed
    assert turns >= 5
    assert all(1 <= target <= 16 for target in flow.targets)
