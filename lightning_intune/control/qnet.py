"""The shared per-stage Q-network: shapes, initial weights, and inference in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lightning_intune.control.action import HOLD, NUM_JOINT, PROPOSAL
from lightning_intune.control.arrays import Bools, Floats, Ints
from lightning_intune.control.observation import GLOBAL_FEATURES, STAGE_FEATURES, Observation
from lightning_intune.errors import ConfigError

Single: TypeAlias = NDArray[np.float32]
Weights: TypeAlias = dict[str, NDArray[np.float32]]
HIDDEN = 64
_NUM_SUMMARY = 4 * len(STAGE_FEATURES) + len(GLOBAL_FEATURES)
_BUSY = STAGE_FEATURES.index("busy")


def usual_move(num_moves: int) -> int:
    """The joint move that departures of single stages are measured from: the proposal, without a model holding."""
    return PROPOSAL if num_moves > NUM_JOINT else HOLD


def summary(seen: Observation) -> Single:
    """[B, F] what joint moves are valued by: mean, greatest and least stage feature, the busiest stage, the whole."""
    mask, stages = seen.is_stage[..., None], seen.stages
    busiest = np.where(seen.is_stage, stages[..., _BUSY], -1.0).argmax(1)
    parts = [
        (stages * mask).sum(1) / np.maximum(mask.sum(1), 1),
        np.where(mask, stages, -9.0).max(1),
        np.where(mask, stages, 9.0).min(1),
        stages[np.arange(len(stages)), busiest],
        seen.whole,
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def shapes(num_moves: int) -> dict[str, tuple[int, ...]]:
    """The network's parameters: about 60 k numbers."""
    num_in = len(STAGE_FEATURES) + len(GLOBAL_FEATURES)
    layers = {
        "encode1": (num_in, HIDDEN),
        "encode2": (HIDDEN, HIDDEN),
        "advantage1": (3 * HIDDEN, HIDDEN),
        "advantage2": (HIDDEN, num_moves),
        "value1": (2 * HIDDEN + len(GLOBAL_FEATURES), HIDDEN),
        "value2": (HIDDEN, 1),
        "joint1": (_NUM_SUMMARY, 2 * HIDDEN),
        "joint2": (2 * HIDDEN, HIDDEN),
        "joint3": (HIDDEN, NUM_JOINT),
    }
    out: dict[str, tuple[int, ...]] = {"summary.shift": (_NUM_SUMMARY,), "summary.scale": (_NUM_SUMMARY,)}
    for name, shape in layers.items():
        out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[1:]
    return out


def initial_weights(num_moves: int, rng: np.random.Generator) -> Weights:
    """He-normal weights; the two last layers start small, so that an untrained network has no strong opinion."""
    weights: Weights = {}
    for name, shape in shapes(num_moves).items():
        if name == "summary.scale":
            weights[name] = np.ones(shape, dtype=np.float32)
            continue
        if name.endswith(("bias", "shift")):
            weights[name] = np.zeros(shape, dtype=np.float32)
            continue
        scale = np.sqrt(2.0 / shape[0]) * (0.05 if name.startswith(("advantage2", "value2", "joint3")) else 1.0)
        weights[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return weights


def shuffled(weights: Weights, rng: np.random.Generator) -> Weights:
    """The same numbers in another order within each array: the control experiment for what was learnt."""
    return {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in weights.items()}


def check_weights(weights: Mapping[str, NDArray[np.float32]], num_moves: int) -> None:
    """ConfigError unless `weights` are this network's, all finite."""
    expected = shapes(num_moves)
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))[:4]
        raise ConfigError(
            f"policy: these are not this network's weights (differing names: {', '.join(odd)}). "
            "Give a file written by `lightning-intune pretrain` of this version, or none for the shipped weights."
        )
    for name, shape in expected.items():
        if weights[name].shape != shape or not bool(np.isfinite(weights[name]).all()):
            raise ConfigError(
                f"policy: '{name}' has shape {weights[name].shape}, or numbers that are not finite; expected "
                f"{shape}. The file is of another version or damaged: remake it with `lightning-intune pretrain`."
            )


@final
class QNet:
    """Q of what all stages do: together V(state) + J(move), mixed V + J(usual) + sum of (A(move) - A(usual)).

    What stages gain only together, J values as a whole; it knows them by a summary and is learnt by comparison
    (`comparison`). The sum over stages is a value decomposition: the best mixed move is the best move of each
    stage, so that any number of stages costs one pass. Source: Sunehag et al. (2018), arXiv 1706.05296; dueling:
    arXiv 1511.06581.
    """

    def __init__(self, weights: Weights) -> None:
        self.num_moves = int(weights["advantage2.bias"].shape[0])
        check_weights(weights, self.num_moves)
        self.weights = weights

    def advantages(self, seen: Observation, legal: Bools) -> Floats:
        """[B, N, A] centred over legal moves, -inf where illegal or no stage."""
        return self.values(seen, legal)[0]

    def values(self, seen: Observation, legal: Bools) -> tuple[Floats, Floats]:
        """(advantages [B, N, A] as above, gains [B, NUM_JOINT] of the joint moves)."""
        raw, _ = self._forward(seen)
        allowed = legal & seen.is_stage[..., None]
        count = np.maximum(allowed.sum(-1, keepdims=True), 1)
        mean = np.where(allowed, raw, 0.0).sum(-1, keepdims=True) / count
        joint = joint_gains(self.weights, summary(seen)).astype(np.float64)
        return np.where(allowed, raw - mean, -np.inf), joint

    def value(self, seen: Observation) -> Floats:
        """[B] V(state)."""
        return self._forward(seen)[1]

    def _forward(self, seen: Observation) -> tuple[Floats, Floats]:
        w = self.weights
        mask: Single = seen.is_stage.astype(np.float32)[..., None]
        stages: Single = seen.stages.astype(np.float32)
        whole: Single = seen.whole.astype(np.float32)
        num_stage_features = stages.shape[-1]
        first = w["encode1.weight"]
        hidden = stages @ first[:num_stage_features] + (whole @ first[num_stage_features:])[:, None, :]
        hidden = _relu(hidden + w["encode1.bias"])
        hidden = _relu(hidden @ w["encode2.weight"] + w["encode2.bias"]) * mask
        mean = hidden.sum(1) / np.maximum(mask.sum(1), 1.0)
        pooled = np.concatenate([mean, hidden.max(1)], axis=-1)
        head = w["advantage1.weight"]
        deep = hidden @ head[:HIDDEN] + (pooled @ head[HIDDEN:])[:, None, :] + w["advantage1.bias"]
        raw = (_relu(deep) @ w["advantage2.weight"] + w["advantage2.bias"]).astype(np.float64)
        context = np.concatenate([pooled, whole], axis=-1)
        state = _relu(context @ w["value1.weight"] + w["value1.bias"])
        return raw, (state @ w["value2.weight"] + w["value2.bias"])[:, 0].astype(np.float64)


def joint_gains(w: Weights, summaries: Single) -> Single:
    """[B, NUM_JOINT] what the joint moves gain, by the weights `w`, for summaries [B, F]."""
    given = np.clip((summaries - w["summary.shift"]) / w["summary.scale"], -4.0, 4.0)
    hidden = _relu(given @ w["joint1.weight"] + w["joint1.bias"])
    hidden = _relu(hidden @ w["joint2.weight"] + w["joint2.bias"])
    return hidden @ w["joint3.weight"] + w["joint3.bias"]


def joint_index(together: Ints, moves: Ints) -> Ints:
    """[B] which joint move `moves` [B, N] are: the first of `together` [B, N, K] that equals them, else K (mixed)."""
    same = (together == moves[..., None]).all(1)
    return np.where(same.any(1), same.argmax(1), together.shape[-1])


def _relu(x: Single | Floats) -> Single:
    return np.maximum(x, 0.0).astype(np.float32, copy=False)
