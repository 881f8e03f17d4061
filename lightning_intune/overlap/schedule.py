"""A model of the exchange's schedule: how long ranks would wait for it, from 2 to 1,024 of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.link import Link

_HEADER_BYTES, _ID_BYTES, _MARK_BYTES = 16, 4, 1
_SETTLED = 2  # steps until the schedule repeats itself

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a rank does in a step. One collection is modelled, and a step's dense all-reduce is part of the compute."""

    compute_s: float
    """Forward, backward and dense optimizer, on average."""
    compute_sigma: float = 0.0
    """Of a lognormal factor on it, drawn for every rank and step."""
    num_rows: int
    """Distinct rows that a rank asks for."""
    row_bytes: int
    """Of a row, and of its gradient."""
    collision_share: float
    """Of those rows, the share that any rank asks for in the next batch too."""
    owner_skew: float = 1.0
    """What the busiest owner is asked for, over the mean."""
    exchange_s: float = 0.0
    """What sorting, reading and updating rows takes the exchange thread in a step, without the link."""

    def __post_init__(self) -> None:
        if not (0 <= self.collision_share <= 1 and self.owner_skew >= 1 and min(self.compute_s, self.exchange_s) >= 0):
            raise ConfigError(
                f"Workload: collision_share={self.collision_share} must lie in [0, 1], owner_skew={self.owner_skew} "
                "be 1 or more, and no time be negative. Correct them."
            )


@final
@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Means over ranks and steps, in seconds."""

    step_s: float
    exposed_s: float
    """Of it, what the trainer waits for rows, a slower rank's compute included."""

    @property
    def exposed_share(self) -> float:
        """Of the step."""
        return self.exposed_s / self.step_s if self.step_s > 0 else 0.0


def predict(
    work: Workload,
    link: Link,
    num_ranks: int,
    *,
    overlap: bool,
    num_steps: int = 50,
    rng: np.random.Generator | None = None,
) -> Prediction:
    """Play `num_steps` through: every message is a meeting of all ranks' exchange threads, as it is over gloo.

    It begins when the last rank comes, and takes as long as the busiest rank's bytes. `overlap` False: no row is
    marked, all gradients and then all rows are waited for.

    >>> work = Workload(compute_s=0.1, num_rows=1000, row_bytes=100, collision_share=0.1)
    >>> link = Link(bytes_per_s=1e6)  # half of 100 kB go to the other rank: 50 ms each way
    >>> ours, waiting = (predict(work, link, 2, overlap=one) for one in (True, False))
    >>> round(ours.exposed_s, 4), round(waiting.exposed_s, 4)
    (0.01, 0.1)
    """
    if num_ranks < 1 or num_steps <= _SETTLED:
        raise ConfigError(f"predict: num_ranks={num_ranks} must be 1 or more, num_steps={num_steps} above {_SETTLED}.")
    random = np.random.default_rng(0) if rng is None else rng
    asking, urgent, late, rest = _messages(work, link, num_ranks, overlap=overlap)
    ready, free = np.zeros(num_ranks), np.zeros(num_ranks)
    begins: list[Floats] = []
    waits: list[Floats] = []
    finished = np.zeros(num_ranks)
    for _ in range(num_steps):
        begun = np.maximum(ready, finished)
        waits.append(begun - finished)
        begins.append(begun)
        free = _meet(np.maximum(free, finished), asking)  # as soon as the trainer has read the next batch
        factor = random.lognormal(-(work.compute_sigma**2) / 2, work.compute_sigma, num_ranks)
        finished = begun + work.compute_s * factor
        free = _meet(_meet(np.maximum(free, finished), urgent), late)
        ready = free
        free = _meet(free, rest)
    steps = np.diff(np.stack(begins)[_SETTLED:], axis=0)
    return Prediction(step_s=float(steps.mean()), exposed_s=float(np.stack(waits)[_SETTLED + 1 :].mean()))


def _meet(comes: Floats, takes_s: float) -> Floats:
    """When the ranks leave a message that none can leave before all have come; one of no length is not sent."""
    return np.full_like(comes, comes.max() + takes_s) if takes_s > 0 else comes


def _messages(work: Workload, link: Link, num_ranks: int, *, overlap: bool) -> tuple[float, float, float, float]:
    """Seconds for asking (rows that come early included), urgent gradients, late rows, the other gradients."""
    if num_ranks == 1:
        return work.exchange_s, 0.0, 0.0, 0.0
    crossing = work.num_rows * (1 - 1 / num_ranks) * work.owner_skew

    def send(num_bytes: float) -> float:
        return link.seconds(round(crossing * num_bytes))

    ask = link.seconds(_HEADER_BYTES * (num_ranks - 1)) + send(_ID_BYTES) + work.exchange_s / 2
    if not overlap:
        return ask, send(work.row_bytes), send(work.row_bytes) + work.exchange_s / 2, 0.0
    collide, others = work.collision_share, 1 - work.collision_share
    return (
        ask + send(2 * _MARK_BYTES) + send(others * work.row_bytes),
        send(collide * work.row_bytes),
        send(collide * work.row_bytes) + collide * work.exchange_s / 2,
        send(others * work.row_bytes) + others * work.exchange_s / 2,
    )
