"""Trials with fewer workers: who has one, who keeps his workers, and what the model makes of the outcome."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_intune.control.agents import make_agent
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.guard import Why
from lightning_intune.control.reading import Reading
from lightning_intune.control.state import agent_state, load_agent_state
from lightning_intune.control.trial import Trial
from lightning_intune.control.worlds import Ranges

THREE = Fleet.draw(1, Ranges(stages=(3, 3)), np.random.default_rng(1), max_stages=3).read()


def crowded(widths: tuple[int, int, int], *, cpu_s: float, rate: float) -> Reading:
    """A turn of a read of 15 ms and two stages of `cpu_s` CPU per sample each, all of whose workers are busy."""
    cpu = np.array([[0.02, cpu_s * rate, cpu_s * rate]])
    busy = np.array([[0.015 * rate, float(widths[1]), float(widths[2])]])
    return replace(
        THREE,
        can_move=np.ones((1, 3), dtype=np.bool_),
        low=np.ones((1, 3)),
        high=np.full((1, 3), 64.0),
        starved=np.zeros((1, 3)),
        blocked=np.zeros((1, 3)),
        fill=np.ones((1, 3)),
        wait_share=np.ones(1),
        others=np.zeros(1),
        memory_limit_bytes=np.array([np.inf]),
        noise=np.array([0.02]),
        is_valid=np.ones(1, dtype=np.bool_),
        width=np.array([widths], dtype=float),
        busy=busy,
        cpu=cpu,
        run_delay=np.maximum(0.0, busy - cpu) * np.array([[0.0, 1.0, 1.0]]),
        samples_per_s=np.array([rate]),
        cpu_used=np.array([2 * cpu_s * rate]),
        cpus=np.array([2.0]),
    )


def run(cpu_s_alone: float, rate_alone: float, turns: int = 12) -> tuple[list[tuple[int, ...]], list[Why], bool]:
    """(widths asked, why, whether the model believes in a closed queue) where many workers cost 1 ms of CPU each."""
    agent = make_agent("model")
    widths, asked, whys = (20, 3, 3), list[tuple[int, ...]](), list[Why]()
    for _ in range(turns):
        is_few = widths[1] == widths[2] == 1
        reading = crowded(widths, cpu_s=cpu_s_alone if is_few else 1e-3, rate=rate_alone if is_few else 950.0)
        choice = agent.decide(reading)
        widths = tuple(int(width) for width in choice.widths[0])
        asked.append(widths)
        whys.append(Why(int(choice.why[0])))
    assert agent.knowledge is not None
    return asked, whys, bool(agent.knowledge.model.is_closed[0])


def test_a_crowded_pipeline_has_a_trial_soon_after_its_start_and_its_readers_keep_their_workers() -> None:
    asked, whys, _ = run(0.5e-3, 1250.0)
    assert Why.FEWER in whys[:8]
    at = whys.index(Why.FEWER)
    assert asked[at][1:] == (1, 1)
    assert asked[at][0] == (asked[at - 1][0] if at else 20)


def test_where_fewer_do_as_well_for_less_cpu_none_are_asked_for_waiting_for_cores_any_more() -> None:
    asked, _, is_closed = run(0.5e-3, 1250.0)
    assert is_closed
    assert all(widths[1:] == (1, 1) for widths in asked[-4:])


@pytest.mark.parametrize(("cpu_s", "rate"), [(0.5e-3, 700.0), (0.98e-3, 960.0)])
def test_where_they_do_less_or_as_much_for_the_same_cpu_nothing_is_concluded(cpu_s: float, rate: float) -> None:
    _, whys, is_closed = run(cpu_s, rate)
    assert Why.FEWER in whys
    assert not is_closed


def test_what_was_found_goes_into_the_state_and_is_forgotten_by_a_restart() -> None:
    agent = make_agent("model")
    agent.decide(crowded((20, 3, 3), cpu_s=1e-3, rate=950.0))
    assert agent.knowledge is not None
    agent.knowledge.model.is_closed[:] = True
    other = make_agent("model")
    load_agent_state(other, agent_state(agent))
    assert other.knowledge is not None
    assert other.knowledge.model.is_closed.tolist() == [True]
    other.restart(np.array([True]))
    assert other.knowledge.model.is_closed.tolist() == [False]


def on_trial(width: int, rate: float = 100.0) -> Reading:
    return replace(crowded((20, width, width), cpu_s=1e-3, rate=rate), cpu_used=np.array([1.8]))


@pytest.mark.parametrize(
    ("turn", "won"),
    [
        (replace(on_trial(1), cpu_used=np.array([1.5])), True),
        (replace(on_trial(1), cpu_used=np.array([1.7])), False),  # 6 % less CPU proves nothing
        (replace(on_trial(1, rate=96.0), cpu_used=np.array([1.4])), False),  # slower
        (replace(on_trial(2), cpu_used=np.array([1.5])), False),  # somebody asked for other widths
        (replace(on_trial(1), cpu_used=np.array([1.5]), others=np.array([0.5])), False),  # a neighbour came
    ],
)
def test_a_trial_is_won_by_its_own_widths_for_a_tenth_less_cpu_on_the_same_machine(turn: Reading, won: bool) -> None:
    trial = Trial(1, 3)
    trial.begin(np.array([True]), on_trial(3), np.array([100.0]), np.array([[20.0, 1.0, 1.0]]))
    assert trial.end(turn, turn.samples_per_s).tolist() == [won]
    assert not trial.end(on_trial(1), np.array([1e9])).any()  # one turn, and it is over


def test_a_turn_that_was_not_measured_leaves_a_trial_under_way() -> None:
    trial, lost = Trial(1, 3), replace(on_trial(1), is_valid=np.zeros(1, dtype=np.bool_))
    trial.begin(np.array([True]), on_trial(3), np.array([100.0]), np.array([[20.0, 1.0, 1.0]]))
    assert not trial.end(lost, np.zeros(1)).any()
    trial.begin(np.array([False]), lost, np.zeros(1), np.zeros((1, 3)))
    cheap = replace(on_trial(1), cpu_used=np.array([1.0]))
    assert trial.end(cheap, cheap.samples_per_s).all()


def test_other_cpus_make_the_finding_void() -> None:
    agent = make_agent("model")
    agent.decide(on_trial(3))
    assert agent.knowledge is not None
    agent.knowledge.model.is_closed[:] = True
    agent.decide(on_trial(3))
    assert agent.knowledge.model.is_closed.all()
    agent.decide(replace(on_trial(3), cpus=np.array([16.0])))
    assert not agent.knowledge.model.is_closed.any()
