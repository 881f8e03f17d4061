"""What a trainer waited for: another rank's trainer that came late, or the exchange itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

_MAX_COMINGS = 4096


@final
@dataclass(frozen=True, kw_only=True)
class Wait:
    """Of the trainer thread; seconds by `time.perf_counter`, one clock for all ranks of a host."""

    begun_s: float
    ended_s: float
    coming: int | None
    """The number of the trainers' coming to what is waited for; None: this one has not come yet."""
    kind: str = "rows"
    """`ids` or `rows`: whole numbers or floating point, gradients included."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.ended_s - self.begun_s

    def late_s(self, last_s: Sequence[float]) -> float:
        """Of it, what went by until the last trainer came; `last_s` by coming.

        >>> Wait(begun_s=1.0, ended_s=5.0, coming=1).late_s([0.0, 3.5])
        2.5
        >>> Wait(begun_s=1.0, ended_s=5.0, coming=1).late_s([2.0, 0.5])
        0.0
        """
        return 0.0 if self.coming is None else max(0.0, min(self.ended_s, last_s[self.coming]) - self.begun_s)


@final
@dataclass(kw_only=True)
class Waits:
    """Those of a rank, and when every rank's trainer came to what they wait for. The trainer thread's alone.

    TorchRec's trainer comes to a message by sending its part; ours to a step's exchange by handing its gradients over.
    """

    rank: int
    board: NDArray[np.float64]
    """[ranks, comings], 0 where a rank has not come yet; `board_at` gives one that a host's ranks share."""
    now: Callable[[], float] = time.perf_counter
    found: list[Wait] = field(default_factory=list[Wait])
    num_comings: int = 0
    _begun_s: float | None = None

    def clock(self) -> float:
        """For `OverlappedTrainPipeline`, which reads it when a wait for rows begins, and when it ends."""
        now_s = self.now()
        if self._begun_s is None:
            self._begun_s = now_s
        else:
            coming = self.num_comings - 1 if self.num_comings > 0 else None
            self.found.append(Wait(begun_s=self._begun_s, ended_s=now_s, coming=coming))
            self._begun_s = None
        return now_s

    def came(self) -> int:
        """Note that this rank's trainer comes; the number of that."""
        self.board[self.rank, self.num_comings] = self.now()
        self.num_comings += 1
        return self.num_comings - 1

    def split_s(self, since_s: float, until_s: float) -> dict[str, float]:
        """Seconds of the waits begun between the two: `waited_s` for rows, `late_s` of them, and `ids_s` for ids.

        To be asked once all ranks have trained.
        """
        last_s = self.board.max(axis=0)[: self.num_comings].tolist()
        meant = [wait for wait in self.found if since_s <= wait.begun_s < until_s]
        rows = [wait for wait in meant if wait.kind == "rows"]
        return {
            "waited_s": sum(wait.seconds for wait in rows),
            "late_s": sum(wait.late_s(last_s) for wait in rows),
            "ids_s": sum(wait.seconds for wait in meant if wait.kind == "ids"),
        }


def board_at(path: Path, num_ranks: int) -> NDArray[np.float64]:
    """For `Waits.board`, the same memory for all ranks that name this file; made by whoever comes first."""
    with path.open("ab") as file:
        file.truncate(8 * num_ranks * _MAX_COMINGS)  # what others have written stays
    return np.memmap(path, np.float64, "r+", shape=(num_ranks, _MAX_COMINGS))
