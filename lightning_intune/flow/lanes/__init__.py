"""Lanes: where a stage's workers run its function. See `lane` for the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from lightning_intune.flow.lanes.lane import Failed, Lane, LaneDiedError, LanePool

__all__ = ["Failed", "Lane", "LaneDiedError", "LanePool", "open_pool"]


def open_pool(
    method: Literal["process", "ray", "auto"], fn: Callable[[Any], Any], *, name: str, context: str | None = None
) -> LanePool:
    """A pool of lanes that run `fn` for stage `name`. ConfigError when it cannot work.

    `context` is the start method of process lanes (`forkserver` by default); Ray has none.
    """
    if method == "process":
        from lightning_intune.flow.lanes.process import ProcessLanePool

        return ProcessLanePool(fn, name=name, context=context)
    if method == "auto":
        from lightning_intune.flow.lanes.auto import AutoLanePool

        return AutoLanePool(fn, name=name, context=context)
    from lightning_intune.flow.lanes.ray import RayLanePool

    return RayLanePool(fn, name=name)
