"""What a trainer waited for: a rank that came late to a message, or the message itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

_MAX_MESSAGES = 4096


@final
@dataclass(frozen=True, kw_only=True)
class Wait:
    """Of the trainer thread; seconds by `time.perf_counter`, one clock for all ranks of a host."""

    begun_s: float
    ended_s: float
    kind: str = "rows"
    """`ids` or `rows`: whole numbers or floating point, gradients included."""
    message: int | None = None
    """The number of the one that it was for; None: for all that were under way."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.ended_s - self.begun_s

    def late_s(self, came_s: Sequence[float], last_s: Sequence[float]) -> float:
        """Of it, what went by between this rank's coming to a message and the last rank's, by message.

        >>> Wait(begun_s=1.0, ended_s=5.0).late_s([0.0, 4.0], [2.0, 4.5])  # one rank came at 2.0, one at 4.5
        1.5
        >>> Wait(begun_s=1.0, ended_s=5.0, message=1).late_s([0.0, 4.0], [2.0, 4.5])
        0.5
        """
        numbers = range(len(came_s)) if self.message is None else [self.message]
        return sum(max(0.0, min(self.ended_s, last_s[one]) - max(self.begun_s, came_s[one])) for one in numbers)


@final
@dataclass(kw_only=True)
class Waits:
    """Those of a rank, and when every rank came to each of its messages, in the order all ranks send them in."""

    rank: int
    board: NDArray[np.float64]
    """[ranks, messages], 0 where a rank has not come yet; `board_at` gives one that a host's ranks share."""
    now: Callable[[], float] = time.perf_counter
    found: list[Wait] = field(default_factory=list[Wait])
    num_messages: int = 0
    _begun_s: float | None = None

    def clock(self) -> float:
        """For `OverlappedTrainPipeline`, which reads it when a wait for rows begins, and when it ends."""
        now_s = self.now()
        if self._begun_s is None:
            self._begun_s = now_s
        else:
            self.found.append(Wait(begun_s=self._begun_s, ended_s=now_s))
            self._begun_s = None
        return now_s

    def came(self) -> int:
        """Note that this rank comes to its next message; the number of that."""
        self.board[self.rank, self.num_messages] = self.now()
        self.num_messages += 1
        return self.num_messages - 1

    def split_s(self, since_s: float, until_s: float) -> dict[str, float]:
        """Seconds of the waits begun between the two: `waited_s` for rows, `late_s` of them, and `ids_s` for ids.

        To be asked once all ranks have trained.
        """
        came_s, last_s = (times[: self.num_messages].tolist() for times in (self.board[self.rank], self.board.max(0)))
        meant = [wait for wait in self.found if since_s <= wait.begun_s < until_s]
        rows = [wait for wait in meant if wait.kind == "rows"]
        return {
            "waited_s": sum(wait.seconds for wait in rows),
            "late_s": sum(wait.late_s(came_s, last_s) for wait in rows),
            "ids_s": sum(wait.seconds for wait in meant if wait.kind == "ids"),
        }


def board_at(path: Path, num_ranks: int) -> NDArray[np.float64]:
    """For `Waits.board`, the same memory for all ranks that name this file; made by whoever comes first."""
    with path.open("ab") as file:
        file.truncate(8 * num_ranks * _MAX_MESSAGES)  # what others have written stays
    return np.memmap(path, np.float64, "r+", shape=(num_ranks, _MAX_MESSAGES))
