"""Process lanes: a worker thread's own process, reached by one socket, large arrays by shared memory."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes import start
from lightning_intune.flow.lanes.arena import Budget
from lightning_intune.flow.lanes.child import is_importing_main
from lightning_intune.flow.lanes.forking import FORK_SERVER, Fork
from lightning_intune.flow.lanes.function import PickledFunction
from lightning_intune.flow.lanes.lane import LanePool
from lightning_intune.flow.lanes.nursery import Nursery
from lightning_intune.flow.lanes.process_lane import ProcessLane

_CONTEXTS = ("forkserver", "spawn", "fork")
_MAX_SHARED_BYTES = 4 << 30


@final
class ProcessLanePool(LanePool):
    """Process lanes for one stage's function, and a warm spare so that growing takes milliseconds.

    `context` is `forkserver` (the default: a shared server with torch, NumPy and the function's module
    imported ahead), `spawn`, or `fork` (only on request: refused beside other threads; the function need
    not pickle, and its server stays until the pool is garbage collected). The function is pickled here and
    now: ConfigError if it cannot be. Results are writable and private to whoever holds them; they lie
    in shared memory, up to `max_shared_bytes` held at once (default a quarter of the machine's, at most
    4 GiB), beyond that in the process's own; of what is free again each lane keeps `max_idle_bytes`, or what a steady
    flow uses. Tensors that shared storage come back apart. Linux only.
    """

    kind = "process"

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        name: str,
        context: str | None = None,
        max_shared_bytes: int | None = None,
        max_idle_bytes: int | None = None,
        keep_spare: bool = True,
    ) -> None:
        _check(name, context, max_shared_bytes)
        self._remake = partial(
            ProcessLanePool, fn, name=name, context=context, max_shared_bytes=max_shared_bytes,
            max_idle_bytes=max_idle_bytes, keep_spare=keep_spare,
        )  # fmt: skip
        budget = Budget(_default_shared_bytes() if max_shared_bytes is None else max_shared_bytes, max_idle_bytes)
        if context == "fork":
            self._nursery = Nursery(name, None, Fork(fn, stage=name), budget, keep_spare=keep_spare)
            weakref.finalize(self, self._nursery.end)
        else:
            function = PickledFunction(fn, stage=name)
            starter = start.Spawn() if context == "spawn" else FORK_SERVER
            self._nursery = Nursery(name, function, starter, budget, keep_spare=keep_spare)
            weakref.finalize(self, self._nursery.close)
        self._budget = budget
        self._nursery.refill()

    def open(self) -> ProcessLane:
        return self._nursery.take()

    def close(self) -> None:
        self._nursery.close()

    @property
    def is_warm(self) -> bool:
        """Whether a spare waits, so that the next `open` takes no time."""
        return self._nursery.is_warm

    @property
    def held_bytes(self) -> int:
        """Bytes of shared memory that live results hold now, over all lanes."""
        return self._budget.held_bytes

    def __reduce__(self) -> Any:
        return self._remake, ()  # a stage travels (ddp_spawn); its processes stay


def _check(name: str, context: str | None, max_shared_bytes: int | None) -> None:
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"stage '{name}': process lanes need Linux (memfd, pidfd). Use method='thread' here.")
    if context is not None and context not in _CONTEXTS:
        raise ConfigError(f"stage '{name}': context={context!r} is unknown. Use one of {', '.join(_CONTEXTS)}.")
    if max_shared_bytes is not None and max_shared_bytes < 0:
        raise ConfigError(f"stage '{name}': max_shared_bytes={max_shared_bytes} is negative. Set 0 or more, or None.")
    if is_importing_main():
        raise ConfigError(
            f"stage '{name}': made while a worker process imports your script a second time; it would make workers "
            "without end. Put the script's own work under `if __name__ == '__main__':`."
        )


def _default_shared_bytes() -> int:
    return min(_MAX_SHARED_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
