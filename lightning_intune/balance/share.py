"""What one rank trains on in one step, and how its loss counts among the others'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, final

T = TypeVar("T")


def loss_scale(global_count: float, world_size: int) -> float:
    """What a rank's *sum* of losses is multiplied by, so that DDP's mean of gradients is that of the global mean loss.

    DDP divides the summed gradients by the number of ranks; with counts that vary, the loss must be loss_sum * world /
    global_count (DESIGN, section 6). 0.0 where nothing counts at all.

    >>> loss_scale(global_count=10, world_size=2)
    0.2
    """
    return world_size / global_count if global_count > 0 else 0.0


@final
@dataclass(frozen=True, kw_only=True)
class RankBatch(Generic[T]):
    """One rank's samples of one step. Multiply the sum of their losses by `loss_scale`."""

    samples: tuple[T, ...]
    """Never empty: a rank that has none left gets a copy of one, to run the model on for the others' sake."""
    is_padding: bool
    """Whether they are such copies; then `loss_scale` is 0."""
    count: float
    """What counts of them: samples, or what the exchange's `count` says (impressions of sessions, or weights). 0 for
    padding."""
    global_count: float
    """The same over all ranks."""
    world_size: int
    planned_costs: tuple[float, ...]
    """By rank, in the cost model's unit, without its `fixed_s`."""
    step: int = 0
    """The step's number in the epoch, from 0: the same batch's on every rank."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def loss_scale(self) -> float:
        """See the function `loss_scale`; 0.0 for padding."""
        return 0.0 if self.is_padding else loss_scale(self.global_count, self.world_size)
