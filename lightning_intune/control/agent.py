"""What an agent is: knowledge, a policy that wants widths, and the guard that all policies run behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats, Ints
from lightning_intune.control.guard import Guard, GuardSettings, Why
from lightning_intune.control.knowledge import Knowledge, Situation
from lightning_intune.control.model import ModelSettings
from lightning_intune.control.reading import Reading


@final
@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a policy wants [B, N], and, from a Q-network, the values it compared (else None)."""

    widths: Floats
    q: Floats | None = None
    """[B, N, A] values of the moves, not finite where illegal."""
    moves: Ints | None = None
    """[B, N] the chosen moves."""
    explored: Bools | None = None
    """[B] whether a move was taken for its novelty."""
    is_sure: Bools | None = None
    """[B] whether enough is to gain over the best widths known to end a rest; None: the model alone decides."""


class Policy(ABC):
    """Wants widths, given a situation. May keep state per pipeline and learn from what follows."""

    name: str

    @abstractmethod
    def wish(self, situation: Situation, rng: np.random.Generator) -> Wish:
        """The widths wanted next, for every pipeline; they need not be legal."""

    def restart(self, rows: Bools) -> None:
        """Fresh pipelines in the chosen rows: forget what was kept for them."""
        del rows

    def learn(self, situation: Situation, asked: Floats, wish: Wish) -> None:
        """Told what was finally asked; the next situation shows what came of it."""
        del situation, asked, wish

    def state_dict(self) -> dict[str, object]:
        """Numbers and arrays that resume this policy."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The counterpart of `state_dict`."""
        del state


@final
@dataclass(frozen=True, kw_only=True)
class Choice:
    """One turn's outcome: the widths asked [B, N], why [B], and what they were decided from."""

    widths: Floats
    why: Ints
    situation: Situation
    wish: Wish


@final
class Agent:
    """Decides for B pipelines at once (B = 1 live). Sized by the first reading. One thread's."""

    def __init__(
        self,
        policy: Policy,
        *,
        rng: np.random.Generator,
        model: ModelSettings | None = None,
        guard: GuardSettings | None = None,
    ) -> None:
        self.policy, self.rng = policy, rng
        self.is_frugal = False
        """Whether a trainer that hardly waits gets no more workers than the lean proposal (`no_stall`)."""
        self._model_settings, self._guard_settings = model, guard
        self.knowledge: Knowledge | None = None
        self.guard: Guard | None = None

    @property
    def name(self) -> str:
        return self.policy.name

    def decide(self, reading: Reading) -> Choice:
        """The widths to ask for after `reading`."""
        knowledge, guard = self._sized(reading)
        situation = knowledge.observe(reading)
        wish = self.policy.wish(situation, self.rng)
        if self.is_frugal:
            is_fed = (reading.wait_share < 0.05)[:, None]
            wish = replace(wish, widths=np.where(is_fed, np.minimum(wish.widths, situation.proposal.lean), wish.widths))
        known = knowledge.best.known_below(reading.legal(np.round(wish.widths)), situation.best_widths)
        verdict = guard.judge(situation, wish.widths, known, wish.is_sure)
        to_hold = np.maximum(situation.rate, situation.best_rate)
        knowledge.trial.begin(verdict.why == int(Why.FEWER), situation.reading, to_hold, verdict.widths)
        self.policy.learn(situation, verdict.widths, wish)
        return Choice(widths=verdict.widths, why=verdict.why, situation=situation, wish=wish)

    def restart(self, rows: Bools) -> None:
        """Fresh pipelines in the chosen rows."""
        if self.knowledge is not None and self.guard is not None:
            self.knowledge.restart(rows)
            self.guard.restart(rows)
        self.policy.restart(rows)

    def forget(self, stages: Bools) -> None:
        """The chosen stages [B, N] cost something else from now on: as after a shift."""
        if self.knowledge is not None and self.knowledge.last_widths.shape == stages.shape:
            self.knowledge.model.reset_stages(stages)
            rows = np.logical_or.reduce(stages, axis=1)
            self.knowledge.trial.drop(rows)
            self.knowledge.wake(rows)

    def size(self, num_pipelines: int, num_stages: int) -> Knowledge:
        """Fresh knowledge for that many pipelines and stages; `decide` does so by itself."""
        self.knowledge = Knowledge(num_pipelines, num_stages, self._model_settings)
        self.guard = Guard(num_pipelines, self._guard_settings)
        return self.knowledge

    def _sized(self, reading: Reading) -> tuple[Knowledge, Guard]:
        if self.knowledge is None or self.knowledge.last_widths.shape != reading.is_stage.shape:
            self.size(reading.num_pipelines, reading.num_stages)
        assert self.knowledge is not None
        assert self.guard is not None
        return self.knowledge, self.guard
