"""Lanes: where a stage's workers run its function. See `lane` for the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning_intune.flow.lanes.lane import Failed, Lane, LaneDiedError, LanePool

__all__ = ["Failed", "Lane", "LaneDiedError", "LanePool", "open_pool"]


def open_pool(
    method: Literal["process", "ray", "auto"],
    fn: Callable[[Any], Any],
    *,
    name: str,
    context: str | None = None,
    is_bounded: bool = False,
) -> LanePool:
    """A pool of lanes that run `fn` for stage `name`. ConfigError when it cannot work.

    `context` is the start method of process lanes (`forkserver` by default); Ray has none. With `is_bounded`, for a
    stage that bounds its bytes, processes keep little shared memory for later.
    """
    if method == "process":
        from lightning_intune.flow.lanes.arena import MAX_IDLE_BYTES
        from lightning_intune.flow.lanes.process import ProcessLanePool

        return ProcessLanePool(fn, name=name, context=context, max_idle_bytes=MAX_IDLE_BYTES if is_bounded else None)
    if method == "auto":
        from lightning_intune.flow.lanes.auto import AutoLanePool

        return AutoLanePool(fn, name=name, context=context, is_bounded=is_bounded)
    from lightning_intune.flow.lanes.ray import RayLanePool

    return RayLanePool(fn, name=name)
