"""One window of items, pulled and agreed on beside the training."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar, final

from lightning_intune.flow.communicator import Communicator
from lightning_intune.flow.rank_share import RankShare, Report

T = TypeVar("T")


@final
class Window(Generic[T]):
    """Up to `size` items of this rank, and every rank's report, by a thread that ends with it.

    All but `stop` is read after its end.
    """

    def __init__(self, share: RankShare[T], size: int, ranks: Communicator) -> None:
        self.size = size
        self.items: list[T] = []
        self.error: Exception | None = None
        self.failure: Exception | None = None
        """Why no agreement was reached."""
        self.reports: list[Report] = []
        self._share, self._ranks = share, ranks
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="equal-steps", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Pull no more; the others are still told."""
        self._stopped.set()

    def _run(self) -> None:
        self.items, self.error, report = self._share.read(self.size, self._stopped)
        try:
            self.reports = self._ranks.gather(report)
        except Exception as raised:  # noqa: BLE001 - raised in the consumer
            self.failure = raised
