"""One window of items, pulled and agreed on beside the training."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar, final

from lightning_intune.flow.ahead import Ahead
from lightning_intune.flow.communicator import Communicator
from lightning_intune.flow.rank_share import RankShare, Report

T = TypeVar("T")


@final
class Window(Generic[T]):
    """Up to `size` items of this rank, and every rank's report, got ahead of need. Read it after the end of `ahead`."""

    def __init__(self, share: RankShare[T], size: int, ranks: Communicator) -> None:
        self.size = size
        self.items: list[T] = []
        self.error: Exception | None = None
        self.reports: list[Report] = []
        self._share, self._ranks = share, ranks
        self.ahead = Ahead(self._work, owner="EqualSteps")

    def _work(self, stopped: threading.Event) -> None:
        self.items, self.error, report = self._share.read(self.size, stopped)
        self.reports = self._ranks.gather(report)
