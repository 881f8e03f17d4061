"""The Q-network as a policy: its moves around the model's proposal and the best widths known."""

from __future__ import annotations

from typing import Protocol, final

import numpy as np

from lightning_intune.control.action import BEST, HOLD, PROPOSAL, MoveSet
from lightning_intune.control.agent import Policy, Wish
from lightning_intune.control.arrays import Bools, Floats, Ints, pick
from lightning_intune.control.knowledge import Situation
from lightning_intune.control.observation import Observation, observe
from lightning_intune.control.qnet import QNet, usual_move

MARGIN = 0.04
"""What the network must see to gain before it leaves the model's proposal: about 0.3 % of the rate."""
REST_MARGIN = 0.1
"""What it must see to gain over the best widths known before it leaves them while the pipeline rests: 0.7 %."""
STAGE_MARGIN = 0.25
"""What a single stage must gain to depart from it: fewer of those stand the test of other pipelines."""


class Follower(Protocol):
    """Whoever learns from a policy's steps: the pretraining's collector, or the live learner."""

    def follow(self, seen: Observation, legal: Bools, moves: Floats, asked: Floats, situation: Situation) -> None:
        """One step: what was seen, what was legal, where each move leads, and what was asked for."""
        ...


@final
class QPolicy(Policy):
    """The best of the joint moves and of single stages' departures; the proposal in two turns after a shift.

    The gate: the proposal is left only where the network sees at least `margin` to gain, by all stages together.
    `explore` [0, 1] is the chance per stage of a random legal move.
    """

    def __init__(
        self,
        net: QNet,
        *,
        plain: bool = False,
        margin: float = 0.0,
        explore: float | Floats = 0.0,
        follower: Follower | None = None,
    ) -> None:
        self.name = "plain_dqn" if plain else "dqn"
        self.net, self.plain, self.margin = net, plain, margin
        self.explore, self.follower = explore, follower
        self.stage_margin = 0.0 if plain else STAGE_MARGIN
        self.moves = MoveSet(plain=plain)
        self._last: tuple[Observation, Bools, Floats] | None = None

    def wish(self, situation: Situation, rng: np.random.Generator) -> Wish:
        seen = observe(situation, plain=self.plain)
        widths = self.moves.widths(situation)
        legal = self.moves.legal(situation, widths)
        q, joint = self.net.values(seen, legal)
        together = self.moves.together(widths)
        chosen, is_sure = self._best(q, joint, together, seen.is_stage)
        if not self.plain:
            chosen = np.where(situation.is_fresh[:, None], together[..., PROPOSAL], chosen)
        explored = np.zeros(len(q), dtype=np.bool_)
        if np.any(np.asarray(self.explore) > 0):
            draws = rng.random(chosen.shape) < np.broadcast_to(np.asarray(self.explore), (len(q),))[:, None]
            draws &= seen.is_stage & (~situation.is_fresh[:, None] | self.plain | (rng.random((len(q), 1)) < 0.2))
            random = np.where(legal, rng.random(q.shape), -1.0).argmax(-1)
            # Half of the time all stages try the same move: near the CPUs' limit they gain only together.
            same = rng.integers(0, q.shape[-1], (len(q), 1))
            joint = np.where(np.take_along_axis(legal, same[..., None], -1)[..., 0], same, HOLD)
            is_joint = rng.random((len(q), 1)) < 0.5
            chosen = np.where(draws & ~is_joint, random, chosen)
            chosen = np.where(is_joint & draws.any(1, keepdims=True) & seen.is_stage, joint, chosen)
            explored = np.asarray(draws.any(1))
        self._last = (seen, legal, widths)
        wanted = pick(widths, chosen)
        return Wish(widths=wanted, q=q, moves=chosen, explored=explored, is_sure=is_sure)

    def _best(self, q: Floats, joint: Floats, together: Ints, is_stage: Bools) -> tuple[Ints, Bools]:
        # The best joint move, or every stage's own departure from the usual one; nothing below `margin`.
        usual_joint = usual_move(q.shape[-1])
        usual = together[..., usual_joint]
        at_usual = pick(q, usual)
        departs = is_stage & (q.max(-1) > at_usual + self.stage_margin)
        own = np.where(departs, q.argmax(-1), usual)
        gain = np.where(departs, q.max(-1) - np.where(departs, at_usual, 0.0), 0.0).sum(1)
        # Joint moves that come to the same widths are one, the first.
        same = (together[..., :, None] == together[..., None, :]).all(1)
        joint = np.take_along_axis(joint, same.argmax(-1), -1)
        base = joint[:, usual_joint]
        gains = np.concatenate([joint - base[:, None], gain[:, None]], axis=-1)
        best, rows = gains.argmax(1), np.arange(len(gains))
        best = np.where(gains[rows, best] >= self.margin, best, usual_joint)
        # At rest the best widths known are kept, not the proposal: those must be beaten.
        over_best = gains[rows, best] - gains[:, min(BEST, joint.shape[1] - 1)]
        is_sure = (over_best > REST_MARGIN) & (not self.plain)
        return np.concatenate([together, own[..., None]], axis=-1)[rows, :, best], is_sure

    def learn(self, situation: Situation, asked: Floats, wish: Wish) -> None:
        del wish
        if self.follower is not None and self._last is not None:
            seen, legal, widths = self._last
            self.follower.follow(seen, legal, widths, asked, situation)
