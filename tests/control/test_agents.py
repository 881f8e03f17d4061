"""Agents over fleets: what learning must be worth, and what no agent may do."""

import numpy as np
import pytest

from lightning_intune.control import make_agent
from lightning_intune.control.agent import Agent
from lightning_intune.control.contest import run_contest
from lightning_intune.control.q_policy import MARGIN, QPolicy
from lightning_intune.control.qnet import QNet, shuffled
from lightning_intune.control.worlds import HARD

NAMES = ("dqn", "model", "static", "even", "greedy", "hill", "random", "plain_dqn")


def agent(name):
    return make_agent(name, learn=False, explore=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_no_agent_passes_the_memory_limit_or_ends_below_its_start(name):
    outcome = run_contest(agent(name), HARD, num=40, turns=12, seed=11)
    assert outcome.violations.sum() == 0
    # a pipeline whose costs have shifted is measured against another best
    steady = outcome.shift_turn < 0
    if name not in {"random", "static", "even"}:
        assert (outcome.share[-1] >= outcome.share[0] - 0.1)[steady].all()


def test_one_seed_gives_one_run_of_an_agent():
    runs = [run_contest(agent("dqn"), HARD, num=12, turns=8, seed=3).share for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])


def test_shuffled_weights_converge_measurably_worse():
    trained = run_contest(agent("dqn"), HARD, num=50, turns=12, seed=21)
    worse = []
    for seed in range(3):
        weights = shuffled(make_agent("dqn").policy.net.weights, np.random.default_rng(seed))
        mixed = Agent(QPolicy(QNet(weights), margin=MARGIN), rng=np.random.default_rng(0))
        outcome = run_contest(mixed, HARD, num=50, turns=12, seed=21)
        worse.append((outcome.share[3:].mean() - trained.share[3:].mean()) < -0.01)
    assert all(worse)


def test_the_agent_beats_the_rules():
    ours = run_contest(agent("dqn"), HARD, num=50, turns=20, seed=31).regret.mean()
    for name in ("greedy", "hill", "even", "static"):
        assert ours < 0.5 * run_contest(agent(name), HARD, num=50, turns=20, seed=31).regret.mean()


def test_an_exploring_agent_still_obeys_memory():
    exploring = make_agent("dqn", learn=False, explore=0.5)
    assert run_contest(exploring, HARD, num=40, turns=12, seed=41).violations.sum() == 0


def test_a_repeat_is_the_same_pipelines_with_other_noise():
    first, again, other = (run_contest(agent("model"), HARD, num=12, turns=6, seed=3, repeat=n) for n in (1, 1, 2))
    np.testing.assert_array_equal(first.share, again.share)
    np.testing.assert_array_equal(first.shift_turn, other.shift_turn)
    np.testing.assert_array_equal(first.share[0], other.share[0])
    assert not np.array_equal(first.share, other.share)
