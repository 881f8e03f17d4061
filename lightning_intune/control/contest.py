"""Runs an agent over a fleet of simulated pipelines and says how far from the oracle it stayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.agent import Agent
from lightning_intune.control.arrays import Floats
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.worlds import Ranges


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One agent's run over B pipelines for T turns."""

    share: Floats
    """[T + 1, B] true rate over the oracle's after each turn; row 0 is the start."""
    violations: Floats
    """[B] turns spent above the memory limit."""
    shift_turn: Floats
    """[B] the turn of a shift, -1 for none."""

    @property
    def regret(self) -> Floats:
        """[B] 1 - share after the last turn."""
        return 1.0 - self.share[-1]

    def turns_to(self, share: float = 0.95) -> Floats:
        """[B] turns from the start until `share` of the oracle; T + 1 where it was not reached."""
        return _first(self.share >= share)

    def turns_back(self, share: float = 0.95) -> Floats:
        """[K] the same from each shift on, for the pipelines that had one (turn 1 is the shift's own)."""
        rows = np.flatnonzero(self.shift_turn > 0)
        turns = [_first(self.share[int(self.shift_turn[row]) :, row : row + 1] >= share)[0] for row in rows]
        return np.array(turns)


def run_contest(
    agent: Agent, ranges: Ranges, *, num: int, turns: int, seed: int, max_stages: int = 10, repeat: int = 0
) -> Outcome:
    """`agent` from width 1 on `num` pipelines drawn with `seed`: equal seeds are equal pipelines and equal noise.

    `repeat` above 0 draws other noise for the same pipelines and shifts.
    """
    fleet = Fleet.draw(num, ranges, np.random.default_rng(seed), max_stages=max_stages)
    if repeat > 0:
        fleet = Fleet.of(fleet.world, np.random.default_rng([seed, repeat]), fleet.shift)
    agent.restart(np.ones(num, dtype=np.bool_))
    shares = [fleet.share]
    for _ in range(turns):
        fleet.step(agent.decide(fleet.read()).widths)
        shares.append(fleet.share)
    return Outcome(share=np.stack(shares), violations=fleet.violations, shift_turn=fleet.shift.turn)


def _first(reached: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> Floats:
    return np.where(reached.any(0), reached.argmax(0), len(reached)).astype(np.float64)
