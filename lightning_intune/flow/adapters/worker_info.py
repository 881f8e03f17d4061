"""What code in a DataLoader worker finds there: `get_worker_info()` and seeded generators."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.utils.data._utils import worker as torch_worker

from lightning_intune.flow.forks import renewed_lock


class _Turn:
    """Whose turn it is to be told: one thread's at a time."""

    def __init__(self) -> None:
        self.lock = renewed_lock(self, "lock", threading.RLock)


_TURN = _Turn()


@contextmanager
def worker_info(worker_id: int, num_workers: int, seed: int, dataset: Any) -> Generator[None]:
    """Inside, `get_worker_info()` tells this; outside, what it told before.

    torch keeps it in one variable per process, so threads take turns here. With `num_workers` 0 nothing
    is told, and nobody waits, as in a DataLoader without workers.
    """
    if num_workers == 0:
        yield
        return
    with _TURN.lock:
        before = torch_worker._worker_info  # pyright: ignore[reportPrivateUsage] - there is no public way to set it
        torch_worker._worker_info = torch_worker.WorkerInfo(worker_id, num_workers, seed, dataset)  # pyright: ignore[reportPrivateUsage]
        try:
            yield
        finally:
            torch_worker._worker_info = before  # pyright: ignore[reportPrivateUsage]


def worker_numpy_seed(base_seed: int, worker_id: int) -> list[int]:
    """What a DataLoader seeds NumPy with in worker `worker_id`."""
    return torch_worker._generate_state(base_seed, worker_id)  # pyright: ignore[reportPrivateUsage] - else results would differ
