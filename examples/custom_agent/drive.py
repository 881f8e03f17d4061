"""Stable-Baselines3's PPO learns in the simulator and drives a live pipeline: `python -m examples.custom_agent.drive`.

Shows one pipeline three times: as it starts, set by PPO, and set by the agent we ship. Takes about two minutes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, final

import gymnasium
import numpy as np

from examples.custom_agent.pipeline import LivePipeline
from lightning_intune.control import Tuner, make_agent
from lightning_intune.control.env import DrivesPipeline, LivePipelineEnv
from lightning_intune.control.worlds import Ranges

MAX_STAGES = 4
SIMULATED = Ranges(stages=(2, 4), cpus=(2.0, 8.0))
"""Pipelines like the one to come: few stages, few cores."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one agent made of the pipeline."""

    name: str
    samples_per_s: float
    """Mean over the last quarter of its turns."""
    widths: dict[str, int]


def learn(num_steps: int, *, seed: int = 0) -> Any:
    """PPO after that many turns of simulated pipelines."""
    from stable_baselines3 import PPO

    environment = gymnasium.make(
        "lightning_intune/SimulatedPipeline-v0", ranges=SIMULATED, max_stages=MAX_STAGES, num_turns=20
    )
    agent = PPO(
        "MlpPolicy", environment, n_steps=min(512, num_steps), batch_size=64, gamma=0.6, seed=seed, device="cpu"
    )
    return agent.learn(num_steps)


def drive(agent: Any, pipeline: DrivesPipeline, *, num_turns: int, turn_s: float) -> Outcome:
    """Let `agent`, anything with `predict(observation)`, set the widths of a running pipeline."""
    environment = LivePipelineEnv(pipeline, max_stages=MAX_STAGES, num_turns=num_turns, turn_s=turn_s)
    seen, info = environment.reset(seed=0)
    rates: list[float] = []
    for _ in range(num_turns):
        action, _ = agent.predict(seen, deterministic=True)
        seen, _, _, _, info = environment.step(action)
        rates.append(info["samples_per_s"])
    return Outcome(name=type(agent).__name__, samples_per_s=_end(rates), widths=info["widths"])


@final
class Nobody:
    """Leaves the widths where they are."""

    def predict(self, seen: Any, *, deterministic: bool) -> tuple[Any, None]:
        """Hold, every stage."""
        del seen, deterministic
        return np.zeros(MAX_STAGES, dtype=np.int64), None


def tune(pipeline: DrivesPipeline, *, num_turns: int, turn_s: float) -> Outcome:
    """What `InTuneCallback` does between steps: the shipped agent on the same pipeline."""
    tuner = Tuner(agent=make_agent("dqn", seed=0), knobs=pipeline.knobs, turn_interval_s=turn_s)
    rates: list[float] = []
    while len(rates) < num_turns:
        pipeline.advance()
        decision = tuner.step(pipeline.read)
        if decision is not None:
            rates.append(decision.samples_per_s)
    return Outcome(name="dqn, as shipped", samples_per_s=_end(rates), widths=tuner.widths)


def compare(*, learn_steps: int = 1_500, num_turns: int = 16, turn_s: float = 0.5) -> list[Outcome]:
    """Nobody, PPO and the shipped agent, each on a pipeline that starts at width 1."""
    print(f"PPO: {learn_steps:,} turns in the simulator ...", flush=True)
    agent = learn(learn_steps)
    outcomes: list[Outcome] = []
    for driver in (Nobody(), agent):
        with LivePipeline() as pipeline:
            outcomes.append(drive(driver, pipeline, num_turns=num_turns, turn_s=turn_s))
    with LivePipeline() as pipeline:
        outcomes.append(tune(pipeline, num_turns=num_turns, turn_s=turn_s))
    return outcomes


def _end(rates: list[float]) -> float:
    return float(np.mean(rates[-max(1, len(rates) // 4) :]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="stable_baselines3")
    for outcome in compare():
        print(f"{outcome.name:>16}: {outcome.samples_per_s:7,.0f} batches/s, widths {outcome.widths}")
