"""Window 2, orders in: the handles by which a stage is resized while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from lightning_intune.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The widths a knob may take, both ends included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < self.low:
            raise ConfigError(
                f"bounds [{self.low}, {self.high}] hold no width. Give 0 <= low <= high, as in Bounds(low=1, high=16)."
            )

    def clip(self, value: int) -> int:
        """The nearest width within the bounds.

        >>> Bounds(low=1, high=8).clip(20)
        8
        """
        return min(self.high, max(self.low, value))


@final
@dataclass(frozen=True, kw_only=True)
class Knob:
    """One stage's width, to be read and turned from any thread.

    `turn` asks for a width and returns at once; `live` is the width that is true now, which follows
    within one item's time. A width outside `bounds` is a ConfigError from the stage.

    `move` is there for a stage of `method="auto"` only: it moves the stage's workers to "thread" or "process"
    from their next item on, and raises ConfigError where the function cannot cross.
    """

    stage: str
    bounds: Bounds
    target: Callable[[], int]
    live: Callable[[], int]
    turn: Callable[[int], None]
    move: Callable[[str], None] | None = None
