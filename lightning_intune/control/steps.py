"""What a gradient step learns from: steps of pipelines with what came of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """K steps and what came n turns later; arrays [K, ...], names as in `Observation`."""

    stages: NDArray[np.float32]
    whole: NDArray[np.float32]
    is_stage: NDArray[np.bool_]
    legal: NDArray[np.bool_]
    moves: NDArray[np.int64]
    """[K, N] the move made per stage."""
    summary: NDArray[np.float32]
    """[K, F] as `qnet.summary`."""
    together: NDArray[np.int64]
    """[K, N, NUM_JOINT] the moves of stages that move together (`MoveSet.together`)."""
    returns: NDArray[np.float32]
    discount: NDArray[np.float32]
    next_stages: NDArray[np.float32]
    next_whole: NDArray[np.float32]
    next_legal: NDArray[np.bool_]
    next_summary: NDArray[np.float32]
    next_together: NDArray[np.int64]
    other_moves: NDArray[np.int64]
    """[K, M, N] joint moves that were not made; M may be 0."""
    other_gains: NDArray[np.float32]
    """[K, M] what they would have gained over the move made, by the simulator."""
    weight: NDArray[np.float32]
    """[K] 0 drops a step."""
