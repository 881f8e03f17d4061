"""Remaking the weights: one seed, one result, and a file that the agent loads."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lightning_intune.control import make_agent
from lightning_intune.control.comparison import ComparisonSettings
from lightning_intune.control.pretrain import TrainSettings, main, pretrain

FEW = ComparisonSettings(num_pipelines=12, num_fleets=1, num_turns=5, num_updates=6, batch_size=16)
TINY = TrainSettings(num_pipelines=8, num_turns=24, validate_every=24, num_validation=4, batch_size=32, comparison=FEW)


def test_a_seed_remakes_the_same_weights():
    runs = [pretrain(TINY)[0] for _ in range(2)]
    for name, array in runs[0].items():
        np.testing.assert_array_equal(array, runs[1][name])


@pytest.mark.slow
def test_another_seed_makes_others():
    one, other = pretrain(TINY)[0], pretrain(replace(TINY, seed=1))[0]
    assert not np.array_equal(one["encode1.weight"], other["encode1.weight"])


@pytest.mark.slow
def test_the_command_writes_weights_that_load_and_a_report(tmp_path):
    assert main(["--seed", "3", "--turns", "5", "--out", str(tmp_path), "--name", "policy"]) == 0
    make_agent("dqn", weights=tmp_path / "policy.safetensors")
    report = json.loads((tmp_path / "policy.json").read_text())
    assert report["settings"]["seed"] == 3
    assert report["checkpoints"][-1]["turn"] == 5
