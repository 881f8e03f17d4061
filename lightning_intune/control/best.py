"""The best widths known: a small table of what was measured at which widths, per pipeline."""

from __future__ import annotations

from typing import final

import numpy as np

from lightning_intune.control.arrays import Bools, Floats, Ints

NUM_KEPT = 12
"""Width vectors remembered per pipeline."""
_KEEP = 0.88
"""Part of a visit that is left of it after a turn."""
_FAINT = 0.1
"""Visits that are always left: what was far worse stays known as that."""


@final
class BestKnown:
    """Mean measured rate per visited width vector. The best is judged by a lower confidence bound.

    Without the bound a lucky noisy turn would be called best and defended ever after. Visits fade, as pipelines
    drift too little for a shift to be noticed: what was once measured is doubted, and at last tried again.
    One thread's.
    """

    def __init__(self, num_pipelines: int, num_stages: int, *, caution: float = 0.7) -> None:
        self._caution = caution
        self.widths = np.zeros((num_pipelines, NUM_KEPT, num_stages))
        self.rate = np.zeros((num_pipelines, NUM_KEPT))
        self.visits = np.zeros((num_pipelines, NUM_KEPT))

    def clear(self, rows: Bools) -> None:
        """Forget the chosen pipelines, whose rates no longer hold."""
        self.widths[rows] = 0.0
        self.rate[rows] = 0.0
        self.visits[rows] = 0.0

    def update(self, widths: Floats, rate: Floats, noise: Floats, is_valid: Bools) -> None:
        """Take in `rate` [B] measured at `widths` [B, N]; a new vector replaces the least promising one."""
        slot, is_known = self._find(widths)
        empty_first = np.where(self.visits > 0, self._bound(noise), -1.0)
        slot = np.where(is_known, slot, empty_first.argmin(1))
        rows = np.flatnonzero(is_valid)
        at = slot[rows]
        faded = np.where(self.visits > 0, np.maximum(_KEEP * self.visits, _FAINT), 0.0)
        self.visits[rows] = faded[rows]
        visits = np.where(is_known[rows], self.visits[rows, at], 0.0)
        self.rate[rows, at] = (self.rate[rows, at] * visits + rate[rows]) / (visits + 1.0)
        self.visits[rows, at] = visits + 1.0
        self.widths[rows, at] = widths[rows]

    def best(self, noise: Floats) -> tuple[Floats, Floats, Floats]:
        """(widths [B, N], mean rate [B], visits [B]) of the best known; zeros where nothing is known."""
        at = self._bound(noise).argmax(1)
        rows = np.arange(len(at))
        return self.widths[rows, at], self.rate[rows, at], self.visits[rows, at]

    def known(self, widths: Floats) -> tuple[Floats, Floats]:
        """(mean rate, visits) [..., B] measured at `widths` [..., B, N]; zeros where they were never tried."""
        slot, is_known = self._find(widths)
        rows = np.arange(slot.shape[-1])
        return np.where(is_known, self.rate[rows, slot], 0.0), np.where(is_known, self.visits[rows, slot], 0.0)

    def known_below(self, widths: Floats, least: Floats) -> tuple[Floats, Floats]:
        """(mean rate, visits) [K, B] of what bears on `widths` [B, N]: themselves, and all between `least` and them.

        More workers everywhere than widths that did harm, which had more than the best: harm to be expected. Visits
        are 0 where an entry does not bear on them.
        """
        wanted, floor = widths[:, None, :], least[:, None, :]
        between = (self.widths <= wanted).all(-1) & (self.widths >= floor).all(-1)
        bears = (between | (self.widths == wanted).all(-1)) & (self.visits > 0)
        return self.rate.T, np.where(bears, self.visits, 0.0).T

    def _find(self, widths: Floats) -> tuple[Ints, Bools]:
        same = (self.widths == widths[..., None, :]).all(-1) & (self.visits > 0)
        return same.argmax(-1), same.any(-1)

    def _bound(self, noise: Floats) -> Floats:
        doubt = self._caution * noise[:, None] / np.sqrt(np.maximum(self.visits, _FAINT))
        return np.where(self.visits > 0, self.rate * np.maximum(0.0, 1.0 - doubt), 0.0)
