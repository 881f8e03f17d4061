"""The moves an agent may make per stage and turn, and which of them are legal."""

from __future__ import annotations

from typing import final

import numpy as np

from lightning_intune.control.arrays import TINY, Bools, Floats, Ints
from lightning_intune.control.knowledge import Situation

MOVES = ("hold", "proposal", "rich", "lean", "best", "plus", "minus", "cut", "grow")
"""Around the present widths, the model's three proposals and the best widths known; `cut` x0.8, `grow` x1.25.

`rich` and `lean` are for rates nearer to and further from the CPUs' limit. They stand where one worker more or
less than the proposal was planned: near the limit a gain needs several stages to grow together, which moves of
single stages do not find.
"""
HOLD, PROPOSAL, BEST = 0, 1, 4
NUM_JOINT = 5
"""The first moves are also made by all stages together, as joint moves that the network values as a whole."""
_WEIGHED = frozenset(("proposal", "rich", "lean", "best"))

PLAIN_MOVES = ("hold", "halve", "minus", "plus", "double")
"""The moves of the plain network, which knows neither model nor best widths."""


@final
class MoveSet:
    """Widths and legality of every move. `plain` takes `PLAIN_MOVES` instead of `MOVES`."""

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain
        self.names = PLAIN_MOVES if plain else MOVES

    def widths(self, situation: Situation) -> Floats:
        """[B, N, A] the legal width each move leads to."""
        reading = situation.reading
        w = reading.width
        if self.plain:
            options = [w, np.ceil(0.5 * w), w - 1.0, w + 1.0, 2.0 * w]
        else:
            p = situation.proposal.widths
            cut, grow = np.floor(0.8 * w), np.ceil(1.25 * w)
            rich, lean = situation.proposal.rich, situation.proposal.lean
            options = [w, p, rich, lean, situation.best_widths, w + 1.0, w - 1.0, cut, grow]
        return reading.legal(np.array(options)).transpose(1, 2, 0)

    def legal(self, situation: Situation, widths: Floats) -> Bools:
        """[B, N, A] moves that may be made: holding always; no two moves to one width; CPU and memory allow it.

        CPU is counted in seconds per second: a stage may grow while its workers, never waiting for a core,
        would use at most 1.5 times the CPUs. Memory: growth must fit by itself (all together: `fit_memory`).
        """
        reading = situation.reading
        now = reading.width[..., None]
        earlier = widths[..., None, :] == widths[..., :, None]
        is_first = earlier.argmax(-1) == np.arange(widths.shape[-1])
        alone_s = situation.cpu_s + situation.wait_base_s
        cpu_share = situation.cpu_s / np.maximum(alone_s, TINY)
        ceiling = (1.5 * reading.free_cpus[:, None] + 1.0) / np.maximum(cpu_share, 1e-3)
        grows = widths > now
        fits_cpu = widths <= np.maximum(ceiling, reading.low)[..., None]
        free = reading.buffer_budget_bytes(0.0) - (reading.width * reading.room_bytes).sum(1)
        fits_memory = (widths - now) * reading.room_bytes[..., None] <= free[:, None, None]
        # The model's proposals and the best widths have been weighed as a whole already.
        weighed = np.array([name in _WEIGHED for name in self.names])
        allowed = is_first & (~grows | weighed | (fits_cpu & fits_memory)) & reading.can_move[..., None]
        allowed[..., HOLD] = True
        return allowed

    @staticmethod
    def together(widths: Floats) -> Ints:
        """[B, N, NUM_JOINT] each stage's move where all of them make the same one of the first moves."""
        return (widths[..., None] == widths[..., None, :NUM_JOINT]).argmax(-2)

    @staticmethod
    def index_of(widths: Floats, asked: Floats) -> tuple[Ints, Bools]:
        """(move [B, N] that leads to `asked`, whether there is one [B, N])."""
        same = widths == asked[..., None]
        return same.argmax(-1), same.any(-1)
