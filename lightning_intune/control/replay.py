"""What was seen and done, kept as one ring over time, so that n-step returns are cut out when sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from lightning_intune.control.action import NUM_JOINT, MoveSet
from lightning_intune.control.arrays import Bools, Floats, Ints
from lightning_intune.control.learning import n_step_return
from lightning_intune.control.observation import GLOBAL_FEATURES, STAGE_FEATURES, Observation
from lightning_intune.control.qnet import summary
from lightning_intune.control.steps import Batch

_KEPT = ("stages", "whole", "is_stage", "legal", "moves", "together", "is_usable", "rewards", "is_start")


@final
class Replay:
    """The last `capacity` turns of B pipelines of up to N stages. One thread's.

    `num_others` moves not made may be kept per step with what a simulator says they would have gained.
    A step is whole once its reward is known (`pay`), one turn after it was added (`add`).
    """

    def __init__(self, capacity: int, num_pipelines: int, num_stages: int, num_moves: int, num_others: int = 0) -> None:
        self.capacity = capacity
        grid = (capacity, num_pipelines)
        self.stages = np.zeros((*grid, num_stages, len(STAGE_FEATURES)), dtype=np.float16)
        self.whole = np.zeros((*grid, len(GLOBAL_FEATURES)), dtype=np.float16)
        self.is_stage = np.zeros((*grid, num_stages), dtype=np.bool_)
        self.legal = np.zeros((*grid, num_stages, num_moves), dtype=np.bool_)
        self.moves = np.zeros((*grid, num_stages), dtype=np.int8)
        self.together = np.zeros((*grid, num_stages, NUM_JOINT), dtype=np.int8)
        self.is_usable = np.zeros(grid, dtype=np.bool_)
        self.rewards = np.zeros(grid, dtype=np.float32)
        self.is_start = np.zeros(grid, dtype=np.bool_)
        self.other_moves = np.zeros((*grid, num_others, num_stages), dtype=np.int8)
        self.other_gains = np.zeros((*grid, num_others), dtype=np.float32)
        self.num_added = 0

    def add(self, seen: Observation, legal: Bools, widths: Floats, asked: Floats, is_start: Bools) -> None:
        """One turn: moves are read off the widths really `asked` [B, N]; a step no move explains is not used."""
        at = self.num_added % self.capacity
        moves, is_move = MoveSet.index_of(widths, asked)
        self.stages[at], self.whole[at] = seen.stages, seen.whole
        self.is_stage[at], self.legal[at], self.moves[at] = seen.is_stage, legal, moves
        self.is_usable[at] = (is_move | ~seen.is_stage).all(1)
        self.together[at] = MoveSet.together(widths)
        self.is_start[at] = is_start
        self.num_added += 1

    def arrays(self, most: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[Any]]]:
        """Everything kept, the oldest first, at most the last `most` turns."""
        count = min(self.num_added, self.capacity, most)
        order = np.arange(self.num_added - count, self.num_added) % self.capacity
        return {name: getattr(self, name)[order] for name in _KEPT}

    def fill(self, arrays: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[Any]]], num_added: int) -> None:
        """Take back what `arrays` gave, as the steps before number `num_added`."""
        count = min(len(arrays["rewards"]), self.capacity)
        order = np.arange(num_added - count, num_added) % self.capacity
        for name in _KEPT:
            getattr(self, name)[order] = arrays[name][-count:] if count else arrays[name]
        self.num_added = num_added
        if count:
            self.is_usable[order[-1]] = False  # its reward was never known

    def pay(self, rewards: Floats, is_valid: Bools | None = None) -> None:
        """The rewards [B] of the step added last."""
        at = (self.num_added - 1) % self.capacity
        self.rewards[at] = rewards
        if is_valid is not None:
            self.is_usable[at] &= is_valid

    def _seen(self, at: Ints, row: Ints) -> Observation:
        stages, whole = self.stages[at, row].astype(np.float64), self.whole[at, row].astype(np.float64)
        return Observation(stages=stages, whole=whole, is_stage=self.is_stage[at, row])

    def compare(self, moves: Ints, gains: Floats) -> None:
        """For the step added last: joint `moves` [K, B, N] and their reward less that of the move made [K, B]."""
        at = (self.num_added - 1) % self.capacity
        self.other_moves[at] = moves.transpose(1, 0, 2)
        self.other_gains[at] = gains.T

    def sample(self, rng: np.random.Generator, size: int, *, n: int, gamma: float) -> Batch | None:
        """`size` steps with their n-step returns, None before there are any. An episode's end drops a step."""
        count = min(self.num_added, self.capacity)
        if count < n + 2:
            return None
        oldest = self.num_added - count
        step = rng.integers(oldest, self.num_added - 1 - n, size)
        row = rng.integers(0, self.rewards.shape[1], size)
        now, later = step % self.capacity, (step + n) % self.capacity
        path = [(step + k) % self.capacity for k in range(n)]
        returns = n_step_return([self.rewards[at, row] for at in path], gamma)
        ends = np.any([self.is_start[(step + k + 1) % self.capacity, row] for k in range(n)], axis=0)
        now_seen, later_seen = (self._seen(at, row) for at in (now, later))
        return Batch(
            summary=summary(now_seen),
            next_summary=summary(later_seen),
            stages=self.stages[now, row].astype(np.float32),
            whole=self.whole[now, row].astype(np.float32),
            is_stage=self.is_stage[now, row],
            legal=self.legal[now, row],
            moves=self.moves[now, row].astype(np.int64),
            together=self.together[now, row].astype(np.int64),
            returns=np.asarray(returns, dtype=np.float32),
            discount=np.full(size, gamma**n, dtype=np.float32),
            next_stages=self.stages[later, row].astype(np.float32),
            next_whole=self.whole[later, row].astype(np.float32),
            next_legal=self.legal[later, row],
            next_together=self.together[later, row].astype(np.int64),
            other_moves=self.other_moves[now, row].astype(np.int64),
            other_gains=self.other_gains[now, row],
            weight=(self.is_usable[now, row] & ~ends).astype(np.float32),
        )
