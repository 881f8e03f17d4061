"""An agent of another library learns in the simulator and drives a live pipeline."""

from __future__ import annotations

import pytest

from examples.custom_agent.drive import MAX_STAGES, Nobody, drive, learn, tune
from examples.custom_agent.pipeline import LivePipeline
from lightning_intune.control.action import MOVES


class Grower:
    """One more worker for every stage, every turn."""

    def predict(self, seen, *, deterministic):
        return [MOVES.index("plus")] * MAX_STAGES, None


def test_an_agents_moves_reach_the_pipelines_stages() -> None:
    with LivePipeline() as pipeline:
        outcome = drive(Grower(), pipeline, num_turns=3, turn_s=0.05)
        # A move that leads where another one leads is masked, so not every turn adds a worker to every stage.
        assert all(1 < outcome.widths[stage] <= 4 for stage in ("read", "unpack"))


def test_nobody_leaves_the_widths_alone() -> None:
    with LivePipeline() as pipeline:
        assert set(drive(Nobody(), pipeline, num_turns=2, turn_s=0.05).widths.values()) == {1}


def test_the_shipped_agent_tunes_the_same_pipeline() -> None:
    with LivePipeline() as pipeline:
        outcome = tune(pipeline, num_turns=3, turn_s=0.05)
    assert outcome.samples_per_s > 0
    assert set(outcome.widths) == {"read", "unpack", "prefetch"}


@pytest.mark.filterwarnings("ignore")  # Stable-Baselines3's own
def test_what_learnt_in_the_simulator_fits_the_live_pipeline() -> None:
    pytest.importorskip("stable_baselines3")
    agent = learn(64)
    with LivePipeline() as pipeline:
        outcome = drive(agent, pipeline, num_turns=2, turn_s=0.05)
    assert outcome.name == "PPO"
    assert outcome.samples_per_s > 0
