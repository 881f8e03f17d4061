"""Remaking the weights: one seed, one result, and a file that the agent loads."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightning_intune.control import make_agent
from lightning_intune.control.agent import Policy, Wish
from lightning_intune.control.comparison import ComparisonSettings, compare, learn_by_comparison
from lightning_intune.control.observation import STAGE_FEATURES
from lightning_intune.control.pretrain import TrainSettings, main, pretrain
from lightning_intune.control.qnet import initial_weights

FEW = ComparisonSettings(num_pipelines=12, num_fleets=1, num_own_fleets=1, num_turns=5, num_updates=6, batch_size=16)
TINY = TrainSettings(num_pipelines=8, num_turns=24, validate_every=24, num_validation=4, batch_size=32, comparison=FEW)


def test_a_seed_remakes_the_same_weights():
    runs = [pretrain(TINY)[0] for _ in range(2)]
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name])


class Still(Policy):
    name = "still"

    def wish(self, situation, rng):
        return Wish(widths=situation.reading.width)


def test_moves_are_compared_where_the_given_policy_gets_to():
    wide = STAGE_FEATURES.index("log_width")  # a summary begins with the means over stages
    still = compare(FEW, np.random.default_rng(0), plain=False, num_fleets=1, policy=Still)
    assert (still.summaries[:, wide] == 0).all()
    assert (compare(FEW, np.random.default_rng(0), plain=False, num_fleets=1).summaries[:, wide] > 0).any()
    assert len(still.with_more(still).gains) == 2 * len(still.gains)


def test_the_second_round_of_comparisons_teaches_more_than_the_first():
    start = initial_weights(9, np.random.default_rng(0))
    once, twice = (
        learn_by_comparison(start, replace(FEW, num_own_fleets=num), np.random.default_rng(1), plain=False)
        for num in (0, 1)
    )
    assert not np.array_equal(once["summary.shift"], twice["summary.shift"])
    np.testing.assert_array_equal(once["encode1.weight"], start["encode1.weight"])
    np.testing.assert_array_equal(twice["encode1.weight"], start["encode1.weight"])


@pytest.mark.slow
def test_another_seed_makes_others():
    one, other = pretrain(TINY)[0], pretrain(replace(TINY, seed=1))[0]
    assert not np.array_equal(one["encode1.weight"], other["encode1.weight"])


@pytest.mark.slow
def test_the_command_writes_weights_that_load_and_a_report(tmp_path, monkeypatch):
    # As much comparison as the tests need: the command's own takes minutes.
    def compared(weights, _settings, rng, *, plain):
        return learn_by_comparison(weights, TINY.comparison, rng, plain=plain)

    monkeypatch.setattr("lightning_intune.control.pretrain.learn_by_comparison", compared)
    assert main(["--seed", "3", "--turns", "5", "--out", str(tmp_path), "--name", "policy"]) == 0
    make_agent("dqn", weights=tmp_path / "policy.safetensors")
    report = json.loads((tmp_path / "policy.json").read_text())
    assert report["settings"]["seed"] == 3
    assert report["checkpoints"][-1]["turn"] == 5
