"""What an agent is paid for: samples, little memory, few moved workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np

from lightning_intune.control.arrays import Floats, clip, ratio

Objective: TypeAlias = Literal["throughput", "no_stall"]

REWARD_SCALE = 15.0
"""Percents of throughput become tenths: what a move is worth should not drown in the rounding of weights."""


@final
@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Weights of the parts; each part is a share of 1."""

    memory_weight: float = 0.05
    """InTune's form, throughput x (1 - memory share), has weight 1; the hard limit is the mask's task here."""
    move_cost: float = 0.01
    step_cost: float = 0.5
    """For the time lost to slower compute steps: besides the samples that it costs, the accelerator stands idle."""
    worker_cost: float = 0.05
    """`no_stall` only: charge for using as many workers as there are CPUs."""


def reward(
    rate: Floats,
    scale: Floats,
    memory_share: Floats,
    moved_share: Floats,
    settings: RewardSettings,
    lost_share: Floats | float = 0.0,
) -> Floats:
    """[B] rate / scale * (1 - weight * memory share) - cost * share of the workers moved, and time lost.

    `scale` is a fixed rate: the oracle's in training, the calibrated roofline live. A live scale that
    followed the cost of a sample would pay the agent for making samples costlier (DESIGN, section 3).

    >>> one = np.ones(1)
    >>> reward(0.8 * one, one, 0.0 * one, 0.5 * one, RewardSettings()).round(3).tolist()
    [0.795]
    >>> reward(0.8 * one, one, 0.0 * one, 0.0 * one, RewardSettings(), lost_share=0.1).round(3).tolist()
    [0.75]
    """
    kept = 1.0 - settings.memory_weight * clip(memory_share, 0.0, 1.0)
    moved = settings.move_cost * clip(moved_share, 0.0, 1.0)
    return ratio(rate, scale) * kept - moved - settings.step_cost * clip(lost_share, 0.0, 1.0)


def worth(rate: Floats, lost_share: Floats, settings: RewardSettings) -> Floats:
    """[B] what a measured `rate` counts for when widths are compared: less, where steps became slower for it.

    >>> worth(np.array([100.0]), np.array([0.1]), RewardSettings()).tolist()
    [95.0]
    """
    return rate * (1.0 - settings.step_cost * clip(lost_share, 0.0, 1.0))


def no_stall_reward(wait_share: Floats, workers: Floats, cpus: Floats, settings: RewardSettings) -> Floats:
    """[B] 1 - wait share - cost * workers per CPU: the fewest workers that keep the trainer from waiting."""
    return 1.0 - clip(wait_share, 0.0, 1.0) - settings.worker_cost * ratio(workers, cpus)


def moved_share(before: Floats, after: Floats) -> Floats:
    """[B] workers started or stopped, over the greater number of workers.

    >>> moved_share(np.array([[1.0, 3.0]]), np.array([[2.0, 2.0]])).tolist()
    [0.5]
    """
    return np.abs(after - before).sum(1) / np.maximum(np.maximum(before.sum(1), after.sum(1)), 1.0)
