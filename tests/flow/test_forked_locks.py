"""In a forked child no lock is held by a thread that is not there."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from lightning_intune.flow.adapters import worker_info
from lightning_intune.flow.adapters.shard_pool import ShardPool
from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes.arena import Budget
from lightning_intune.flow.lanes.auto import AutoLanePool
from lightning_intune.flow.lanes.process_lane import _Death
from lightning_intune.flow.row_groups import _Footers


class Plain:
    def __init__(self) -> None:
        self.lock = renewed_lock(self, "lock", threading.RLock)


def shard_pool() -> Any:
    return ShardPool(None, 1, None, kind="thread", stage="x")  # pyright: ignore[reportArgumentType]


HOLDERS: dict[str, Callable[[], tuple[Any, str]]] = {
    "plain": lambda: (Plain(), "lock"),
    "worker_info": lambda: (worker_info._TURN, "lock"),
    "shard pool": lambda: (shard_pool(), "_turn"),
    "footers": lambda: (_Footers(()), "_lock"),
    "budget of shared memory": lambda: (Budget(1), "_lock"),
    "auto lanes": lambda: (AutoLanePool(len, name="x"), "_moving"),
    "a lane's end": lambda: (_Death(None, None), "_strike_lock"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_lock_that_a_thread_held_at_a_fork_is_free_in_the_child(name: str) -> None:
    owner, attribute = HOLDERS[name]()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with getattr(owner, attribute):
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0 if getattr(owner, attribute).acquire(blocking=False) else 1)
    _, status = os.waitpid(pid, 0)
    is_held_here = not getattr(owner, attribute).acquire(blocking=False)
    over.set()
    holder.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert is_held_here
