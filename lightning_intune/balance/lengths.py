"""How long samples are: one length each, or one for every row of a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.division import check_costs

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """The lengths of some samples, small enough to be told to other ranks.

    >>> Lengths.of([3, 4], int).costs(CostModel(linear=0.0, quadratic=1.0))
    array([ 9., 16.])
    >>> Lengths.of([[1, 2], [3]], list).costs(CostModel(linear=0.0, quadratic=1.0))
    array([5., 9.])
    """

    values: NDArray[Any]
    """[n] in the smallest unsigned integers that hold them, u16 for most; as they are where not whole."""
    rows: NDArray[Any] | None
    """Where a sample may have several rows: how many of `values` are each sample's. None: one each."""

    @staticmethod
    def of(samples: Sequence[Any], length: Callable[[Any], Any]) -> Lengths:
        """Ask `length` of every sample. ValueError for a length that is negative, infinite or NaN."""
        told = [length(sample) for sample in samples]
        if not any(hasattr(one, "__len__") and getattr(one, "ndim", 1) > 0 for one in told):
            return Lengths(values=_compact(told), rows=None)
        parts = [np.atleast_1d(np.asarray(one, np.float64)) for one in told]
        return Lengths(values=_compact(np.concatenate(parts)), rows=_compact([len(part) for part in parts]))

    def costs(self, cost: CostModel) -> Floats:
        """What each sample costs: the sum over its rows. ValueError for rows where `cost` is padded."""
        each = cost(self.values)
        if self.rows is None:
            return each
        if cost.padded:
            raise ValueError(
                "a padded cost is of batches of one length per sample, and `length` gave several for one. Let it give "
                "one, or use a CostModel that is not padded."
            )
        owner = np.repeat(np.arange(len(self.rows)), self.rows.astype(np.int64))
        return np.bincount(owner, each, len(self.rows)).astype(np.float64)


def _compact(lengths: Any) -> NDArray[Any]:
    values = check_costs(np.asarray(lengths, np.float64))
    whole = values.astype(np.uint64) if (values < 2**63).all() else None
    if whole is None or (whole != values).any():
        return values
    return whole.astype(np.result_type(np.uint8, np.min_scalar_type(int(whole.max(initial=0)))))
