"""The array types of control: B pipelines first, then N stages, padded where a pipeline is shorter."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)

TINY = 1e-12
"""Added to divisors that may be zero; far below any second or sample counted here."""


def ratio(top: Floats, bottom: Floats) -> Floats:
    """`top / bottom`, 0 where `bottom` is not positive.

    >>> ratio(np.array([3.0, 1.0]), np.array([2.0, 0.0])).tolist()
    [1.5, 0.0]
    """
    return np.where(bottom > TINY, top / np.maximum(bottom, TINY), 0.0)


def clip(values: Floats | float, low: Floats | float, high: Floats | float) -> Floats:
    """`values` within [low, high]; what is not a number stays so. `np.clip` takes four times as long for few numbers.

    >>> clip(np.array([-1.0, 0.5, 2.0]), 0.0, 1.0).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.minimum(np.maximum(values, low), high)


def pick(values: NDArray[Number], at: Ints) -> NDArray[Number]:
    """`values` [..., A] at the index `at` [...] of each row.

    >>> pick(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0])).tolist()
    [2.0, 3.0]
    """
    rows = values.reshape(-1, values.shape[-1])
    return rows[np.arange(len(rows)), at.ravel()].reshape(at.shape)


def log_ratio(top: Floats, bottom: Floats, limit: Floats | float = 4.0) -> Floats:
    """log2(top / bottom) within [-limit, limit]; 0 where either is not positive."""
    known = (top > TINY) & (bottom > TINY)
    logs = np.log2(np.where(known, top, 1.0)) - np.log2(np.where(known, bottom, 1.0))
    return clip(logs, -limit, limit)
