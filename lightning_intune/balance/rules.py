"""What the ranks of an exchange must have set alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from lightning_intune.balance.plan import Floats, Ints, Mode, steps_in_order, steps_of_equal_cost
from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import State


@final
@dataclass(frozen=True, kw_only=True)
class Rules:
    """What all ranks must have set alike."""

    batch_size: int
    mode: Mode
    equal_count: bool
    uneven: Literal["pad", "drop"]
    length: Callable[[Any], Any]
    """A sample's length; or one for each of its rows."""
    count: Callable[[Any], float] | None
    padded: bool

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"BalancedExchange: batch_size={self.batch_size} makes no batch. Set it to 1 or more.")
        if self.mode not in get_args(Mode):
            raise ConfigError(
                f"BalancedExchange: mode={self.mode!r} is unknown. Use one of {', '.join(get_args(Mode))}."
            )
        if self.uneven not in ("pad", "drop"):
            raise ConfigError(f"BalancedExchange: uneven={self.uneven!r} is unknown. Use 'pad' or 'drop'.")
        if not self.equal_count and self.mode != "global":
            raise ConfigError(
                "BalancedExchange: equal_count=False is for mode='global'. In the others counts are equal."
            )
        if self.padded and (self.equal_count or self.mode != "global") and self.mode != "off":
            raise ConfigError(
                "BalancedExchange: with a padded cost a rank's work is its count times its longest sample, which equal "
                "counts cannot even out. Set mode='global' and equal_count=False."
            )

    def summary(self) -> dict[str, Any]:
        """What a state is good for."""
        return {
            "batch_size": self.batch_size,
            "mode": self.mode,
            "equal_count": self.equal_count,
            "uneven": self.uneven,
        }

    def check_state(self, state: State) -> None:
        """ConfigError where `state` was saved under other rules: its place would mean other samples."""
        if state["rules"] != self.summary():
            raise ConfigError(
                f"BalancedExchange: this state was saved with {state['rules']}, and here are {self.summary()}: its "
                "place would mean other samples. Set the same, or start the epoch anew."
            )

    def num_steps(self, num_samples: Sequence[int]) -> int:
        """How many steps all ranks make of so many samples, by rank."""
        if self.uneven == "drop":
            return min(size // self.batch_size for size in num_samples)
        return max(-(-size // self.batch_size) for size in num_samples)

    def steps_held(self, costs: Floats) -> Ints:
        """The steps of the samples that a rank holds for a round, in modes other than global."""
        if self.mode in ("local", "reservoir"):
            return steps_of_equal_cost(costs, self.batch_size)
        return steps_in_order(len(costs), self.batch_size)

    def count_of(self, samples: Sequence[Any]) -> float:
        """How many samples they count as in the loss. ValueError for a count that is negative or not finite."""
        if self.count is None:
            return len(samples)
        counts = [self.count(sample) for sample in samples]
        bad = next((count for count in counts if not 0 <= count < math.inf), None)
        if bad is not None:
            raise ValueError(f"count gave {bad} for a sample. Give what it counts in the loss: finite, 0 or more.")
        return sum(counts)
