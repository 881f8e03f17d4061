"""Log loss and AUC, and how sure the clicks let us be of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Quality:
    """A model's figures on some rows, each with its 95 % interval by a bootstrap over rows."""

    log_loss: float
    gain: tuple[float, float, float]
    """(low, mean, high) of the nats by which it is better than the other model, row by row."""
    auc: tuple[float, float, float]
    """(low, measured, high)."""


def quality(
    probabilities: Floats, other: Floats, clicks: Floats, *, num_resamples: int = 1000, seed: int = 0
) -> Quality:
    """Judge `probabilities` [N], and beside `other` [N], on `clicks` [N], in which both 0 and 1 occur.

    Rows are resampled as if independent, so repeated visits of one user make the intervals a little too narrow.
    """
    losses = log_losses(probabilities, clicks)
    gains = log_losses(other, clicks) - losses
    rng, num_rows = np.random.default_rng(seed), len(clicks)
    means, areas = np.empty(num_resamples), np.empty(num_resamples)
    for i in range(num_resamples):
        counts = np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows)
        means[i] = gains @ counts / num_rows
        areas[i] = auc(probabilities, clicks, counts)
    (low, high), (auc_low, auc_high) = (np.nanquantile(values, [0.025, 0.975]) for values in (means, areas))
    return Quality(
        log_loss=float(losses.mean()),
        gain=(float(low), float(gains.mean()), float(high)),
        auc=(float(auc_low), auc(probabilities, clicks, np.ones(num_rows)), float(auc_high)),
    )


def auc(probabilities: Floats, clicks: Floats, counts: npt.NDArray[np.float64 | np.int64]) -> float:
    """The chance that a click's probability is above that of another row, ties counting half; NaN for one class.

    >>> auc(np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))
    0.875
    """
    _, places = np.unique(probabilities, return_inverse=True)
    ones = np.bincount(places, weights=counts * clicks)
    zeros = np.bincount(places, weights=counts * (1 - clicks))
    below = np.cumsum(zeros) - zeros
    pairs = ones.sum() * zeros.sum()
    return float((ones * (below + zeros / 2)).sum() / pairs) if pairs else float("nan")


def log_losses(probabilities: Floats, clicks: Floats) -> Floats:
    """The log loss in nats of each row."""
    safe = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return -(clicks * np.log(safe) + (1 - clicks) * np.log1p(-safe))
