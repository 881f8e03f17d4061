"""Learning in the live run: a little, from what really happened, and tied to what was learnt before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats
from lightning_intune.control.knowledge import Situation
from lightning_intune.control.live_learner import LiveLearner
from lightning_intune.control.observation import Observation
from lightning_intune.control.q_policy import QPolicy
from lightning_intune.control.qnet import QNet, Weights
from lightning_intune.control.replay import Replay
from lightning_intune.control.reward import REWARD_SCALE, RewardSettings, moved_share, reward

_CAPACITY = 1024
_NUM_STEPS, _GAMMA = 3, 0.6


@final
class OnlineLearning:
    """A `Follower` of one live policy (B = 1): pays each step by what the next turn showed, and learns from it.

    One small gradient step every `every` turns; afterwards the weights are pulled back towards the shipped
    ones by `anchor`, so that a noisy hour cannot unlearn the pretraining. One thread's.
    """

    def __init__(
        self, policy: QPolicy, rng: np.random.Generator, *, every: int = 8, lr: float = 3e-5, anchor: float = 0.01
    ) -> None:
        self._policy, self._rng, self._every, self._lr, self._anchor = policy, rng, every, lr, anchor
        self._home: Weights = {name: array.copy() for name, array in policy.net.weights.items()}
        self._learner: LiveLearner | None = None
        self._replay: Replay | None = None
        self._before: tuple[float, Floats] | None = None
        self._scale = 0.0

    def follow(self, seen: Observation, legal: Bools, moves: Floats, asked: Floats, situation: Situation) -> None:
        """Pay the step before with this turn's rate, keep this step, learn when it is time."""
        num_stages = seen.stages.shape[1]
        if self._replay is None or self._replay.stages.shape[2] != num_stages:
            self._replay = Replay(_CAPACITY, 1, num_stages, moves.shape[-1])
            self._before = None
        reading = situation.reading
        if self._before is not None:
            expected, widths = self._before
            mine = reward(
                reading.samples_per_s,
                np.array([self._scale]),
                np.zeros(1),
                moved_share(widths, reading.width),
                RewardSettings(),
                situation.lost,
            )
            is_usable = reading.is_valid & ~situation.has_shifted
            self._replay.pay(REWARD_SCALE * np.clip(mine - expected, -0.5, 0.5), is_usable)
        if self._scale <= 0 or bool(situation.has_shifted[0]):
            self._scale = float(max(situation.proposal.samples_per_s[0], reading.samples_per_s[0], 1e-9))
        self._replay.add(seen, legal, moves, asked, situation.turns == 0)
        self._before = (float(self._model_rate(situation)) / self._scale, reading.width.copy())
        if self._replay.num_added % self._every == 0 and self._replay.num_added > 8:
            self._learn()

    @staticmethod
    def _model_rate(situation: Situation) -> np.float64:
        # What the model's proposal would have given: its own forecast, held near what was measured.
        rate = situation.reading.samples_per_s[0]
        return np.clip(situation.predicted_proposal[0], 0.8 * rate, 1.2 * rate)

    def _learn(self) -> None:
        if self._learner is None:
            self._learner = LiveLearner(self._policy.net.weights, lr=self._lr, polyak_rate=0.05)
        assert self._replay is not None
        batch = self._replay.sample(self._rng, 12, n=_NUM_STEPS, gamma=_GAMMA)
        if batch is None or not batch.weight.any():
            return
        self._learner.step(batch)
        self._learner.pull(self._home, self._anchor)
        weights = self._learner.weights()
        if all(bool(np.isfinite(array).all()) for array in weights.values()):
            self._policy.net = QNet(weights)

    def state_dict(self) -> dict[str, Any]:
        """The replay and what the next reward needs, as tensors and numbers."""
        import torch

        if self._replay is None:
            return {}
        arrays = {name: torch.tensor(array) for name, array in self._replay.arrays(_CAPACITY).items()}
        return {"replay": arrays, "num_added": self._replay.num_added, "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state_dict`; the learner starts from the policy's present weights."""
        if "replay" not in state:
            return
        arrays = {name: np.asarray(array) for name, array in state["replay"].items()}
        num_stages, num_moves = arrays["legal"].shape[2:]
        self._replay = Replay(_CAPACITY, 1, num_stages, num_moves)
        self._replay.fill(arrays, int(state["num_added"]))
        self._scale, self._before, self._learner = float(state["scale"]), None, None
