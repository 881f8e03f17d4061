"""Learning in the live run without torch: the gradient of `QNet` by hand, and Adam, in NumPy.

A turn has milliseconds. The first step of a torch optimizer alone imports for a second, and each later one
costs as much as the rest of the turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lightning_intune.control.learning import double_q_target, polyak
from lightning_intune.control.qnet import HIDDEN, Single, Weights, joint_gains, joint_index, usual_move
from lightning_intune.control.steps import Batch

Moves: TypeAlias = NDArray[np.int64]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_MOST_NORM = 1.0


@final
class LiveLearner:
    """As `Learner`, for small batches: double-Q target, Huber loss, clipped gradient, Adam, Polyak target."""

    def __init__(self, weights: Weights, *, lr: float, polyak_rate: float) -> None:
        self._online = {name: array.astype(np.float32) for name, array in weights.items()}
        self._target = {name: array.copy() for name, array in self._online.items()}
        self._first = {name: np.zeros_like(array) for name, array in self._online.items()}
        self._second = {name: np.zeros_like(array) for name, array in self._online.items()}
        self._lr, self._polyak_rate, self._num_steps = lr, polyak_rate, 0

    def step(self, batch: Batch) -> float:
        """One gradient step; the mean absolute error before it."""
        online = Pass.of(self._online, batch, later=True)
        target = Pass.of(self._target, batch, later=True)
        best = online.best(batch.next_together)
        value = target.value + target.gain(best, batch.next_together)
        now = Pass.of(self._online, batch)
        error = now.value + now.gain(batch.moves, batch.together)
        error = error - double_q_target(batch.returns, batch.discount, value)
        total = max(1.0, float(batch.weight.sum()))
        # The Huber loss' slope is the error, within one.
        slope = (batch.weight * np.clip(error, -1.0, 1.0) / total).astype(np.float32)
        gradient = now.gradient(self._online, batch.moves, batch.together, slope)
        self._descend(gradient)
        return float((np.abs(error) * batch.weight).sum() / total)

    def pull(self, home: Weights, share: float) -> None:
        """Move the weights by `share` of the way towards `home`."""
        for name, value in self._online.items():
            value += share * (home[name] - value)

    def weights(self) -> Weights:
        """A copy of the online network."""
        return {name: array.copy() for name, array in self._online.items()}

    def _descend(self, gradient: Weights) -> None:
        # Source: Kingma & Ba (2015), arXiv 1412.6980, algorithm 1, and the efficient order after it.
        norm = np.sqrt(sum(float((array * array).sum()) for array in gradient.values()))
        scale = min(1.0, _MOST_NORM / (norm + 1e-6))
        self._num_steps += 1
        first_rate, second_rate = _BETAS
        unbiased = 1.0 - second_rate**self._num_steps
        rate = self._lr / (1.0 - first_rate**self._num_steps)
        for name, array in gradient.items():
            array *= scale
            first, second = self._first[name], self._second[name]
            first += (1.0 - first_rate) * (array - first)
            second += (1.0 - second_rate) * (array * array - second)
            self._online[name] -= rate * first / (np.sqrt(second / unbiased) + _EPSILON)
            self._target[name] = polyak(self._target[name], self._online[name], self._polyak_rate)


@final
@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass of `QNet` with what its gradient needs; names as there."""

    stages: Single
    whole: Single
    mask: Single
    allowed: Single
    hidden1: Single
    hidden2: Single
    pooled: Single
    deep: Single
    state: Single
    joint: Single
    value: Single
    raw: Single

    @classmethod
    def of(cls, w: Weights, batch: Batch, *, later: bool = False) -> Pass:
        """The pass of weights `w` over the steps of `batch`, or over where they led to."""
        stages, whole = (batch.next_stages, batch.next_whole) if later else (batch.stages, batch.whole)
        legal, is_stage = (batch.next_legal if later else batch.legal), batch.is_stage
        mask: Single = is_stage[..., None].astype(np.float32)
        split, first, head = stages.shape[-1], w["encode1.weight"], w["advantage1.weight"]
        hidden1 = np.maximum(stages @ first[:split] + (whole @ first[split:])[:, None, :] + w["encode1.bias"], 0.0)
        hidden2 = np.maximum(hidden1 @ w["encode2.weight"] + w["encode2.bias"], 0.0) * mask
        mean = hidden2.sum(1) / np.maximum(mask.sum(1), 1.0)
        pooled = np.concatenate([mean, hidden2.max(1)], axis=-1)
        deep = np.maximum(hidden2 @ head[:HIDDEN] + (pooled @ head[HIDDEN:])[:, None, :] + w["advantage1.bias"], 0.0)
        state = np.maximum(np.concatenate([pooled, whole], axis=-1) @ w["value1.weight"] + w["value1.bias"], 0.0)
        return cls(
            stages=stages,
            whole=whole,
            mask=mask,
            allowed=(legal & is_stage[..., None]).astype(np.float32),
            hidden1=hidden1,
            hidden2=hidden2,
            pooled=pooled,
            deep=deep,
            state=state,
            joint=joint_gains(w, batch.next_summary if later else batch.summary),
            value=(state @ w["value2.weight"] + w["value2.bias"])[:, 0],
            raw=deep @ w["advantage2.weight"] + w["advantage2.bias"],
        )

    def _advantages(self) -> Single:
        count = np.maximum(self.allowed.sum(-1, keepdims=True), 1.0)
        return self.raw - (self.raw * self.allowed).sum(-1, keepdims=True) / count

    def best(self, together: Moves) -> Moves:
        """[K, N] the best of the joint moves and of every stage's own best."""
        own = np.where(self.allowed > 0, self._advantages(), -np.inf).argmax(-1)
        tried = np.concatenate([together, own[..., None]], axis=-1)
        gains = np.stack([self.gain(tried[..., at], together) for at in range(tried.shape[-1])], axis=-1)
        return np.take_along_axis(tried, gains.argmax(1)[:, None, None], -1)[..., 0]

    def gain(self, moves: Moves, together: Moves) -> Single:
        """[K] what the joint `moves` [K, N] add to the state's value."""
        advantages, usual = self._advantages(), usual_move(self.raw.shape[-1])
        made = np.take_along_axis(advantages, moves[..., None], -1)
        base = np.take_along_axis(advantages, together[..., usual, None], -1)
        mixed = self.joint[:, usual] + ((made - base) * self.mask)[..., 0].sum(1)
        index = joint_index(together, moves)
        known = np.take_along_axis(self.joint, np.minimum(index, self.joint.shape[1] - 1)[:, None], -1)[:, 0]
        return np.where(index < self.joint.shape[1], known, mixed)

    def gradient(self, w: Weights, moves: Moves, together: Moves, slope: Single) -> Weights:
        """The gradient of sum(slope [K] * (value + gain of `moves`)) by every weight but those of joint moves.

        Those are told by comparison (see `comparison`), for which there is no simulator here.
        """
        numbers = np.arange(self.raw.shape[-1])
        usual = together[..., usual_move(len(numbers)), None]
        departs = (moves[..., None] == numbers).astype(np.float32) - (usual == numbers)
        is_mixed = joint_index(together, moves) == together.shape[-1]
        raw = departs * self.mask * (slope * is_mixed)[:, None, None]
        g: Weights = {}

        def through(layer: str, given: Single, came: Single, live: Single | None) -> Single:
            # Gradients of one layer given its input and the gradient of its output; returns the input's.
            came = came if live is None else came * (live > 0)
            flat = came.reshape(-1, came.shape[-1])
            g[f"{layer}.weight"] = given.reshape(-1, given.shape[-1]).T @ flat
            g[f"{layer}.bias"] = flat.sum(0)
            return came

        came = through("advantage2", self.deep, raw, None)
        deep = (came @ w["advantage2.weight"].T) * (self.deep > 0)
        context = np.broadcast_to(self.pooled[:, None, :], (*deep.shape[:2], 2 * HIDDEN))
        through("advantage1", np.concatenate([self.hidden2, context], axis=-1), deep, None)
        head = w["advantage1.weight"]
        value = slope[:, None]
        through("value2", self.state, value, None)
        state = through(
            "value1", np.concatenate([self.pooled, self.whole], -1), value @ w["value2.weight"].T, self.state
        )
        pooled = deep.sum(1) @ head[HIDDEN:].T + state @ w["value1.weight"][: 2 * HIDDEN].T
        top = self.hidden2.argmax(1)
        highest = top[:, None, :] == np.arange(deep.shape[1])[None, :, None]
        mean = pooled[:, None, :HIDDEN] / np.maximum(self.mask.sum(1), 1.0)[:, None, :]
        hidden2 = (deep @ head[:HIDDEN].T + mean + pooled[:, None, HIDDEN:] * highest) * self.mask
        came = through("encode2", self.hidden1, hidden2, self.hidden2)
        whole = np.broadcast_to(self.whole[:, None, :], (*came.shape[:2], self.whole.shape[-1]))
        through("encode1", np.concatenate([self.stages, whole], axis=-1), came @ w["encode2.weight"].T, self.hidden1)
        return {name: array.astype(np.float32) for name, array in g.items()}
