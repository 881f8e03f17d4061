"""What a lane is: the place where one worker of a stage runs the stage's function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True)
class Failed:
    """The outcome of an item whose function raised; `error` carries its original traceback."""

    error: BaseException


class LaneDiedError(RuntimeError):
    """The lane's process or actor is gone (killed, out of memory, exited); its items may be tried again."""


class LaneDiedIdleError(LaneDiedError):
    """It was gone before it had read the items: none of them is to blame for it."""


class Lane(ABC):
    """One place to run the function, owned by one worker thread, which waits while it works.

    `run` is called by that thread only; `kill` may be called from any, and ends a running `run` with
    `LaneDiedError`. A thread lane has no object of this class: the engine calls the function itself.
    """

    @abstractmethod
    def run(self, items: Sequence[Any], *, within_s: float = math.inf) -> list[Any]:
        """The function's result for each of `items`, in order; a `Failed` where it raised.

        For the first of them only, at least one, when they took longer than `within_s`: the others were not begun.
        Raises LaneDiedError when the place is gone, LaneDiedIdleError when it certainly was before it read the items.
        A function that raises StopIteration is a `Failed` too.
        """

    @property
    @abstractmethod
    def cpu_s(self) -> float:
        """CPU seconds spent in the remote place so far, as reported with its last results."""

    @property
    @abstractmethod
    def run_delay_s(self) -> float:
        """Seconds the remote place was runnable without a core so far, as reported with its last results."""

    @property
    @abstractmethod
    def fn_s(self) -> float:
        """Wall seconds the items have taken in the remote place so far, as reported with its last results."""

    @abstractmethod
    def close(self) -> None:
        """End the place in order and wait for it, a bounded time, then kill it. Harmless when repeated."""

    @abstractmethod
    def kill(self) -> None:
        """End the place at once."""


class LanePool(ABC):
    """Makes lanes for one stage and keeps what they share (function, spares, buffers)."""

    kind: str

    @abstractmethod
    def open(self) -> Lane:
        """A lane ready to run, a kept spare when one is warm."""

    @abstractmethod
    def close(self) -> None:
        """Close the spares and what the lanes share. Results already handed out stay valid."""
