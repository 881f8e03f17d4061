"""Stages that can be resized while they run: drop-ins for torchdata's `ParallelMapper` and `Prefetcher`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes.lane import LanePool
from lightning_intune.flow.node import BaseNode
from lightning_intune.flow.on_error import RAISE, OnError, checked_policy
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.stage import ElasticStage, whole
from lightning_intune.knobs import Bounds

X = TypeVar("X")
T = TypeVar("T")

Method = Literal["thread", "process", "ray", "auto"]

_JOIN_S = 5.0
_TINY_S = 50e-6  # a wake-up costs about as much
_TINY_LANE_S = 300e-6  # and a round trip to a process several times that
_MAX_WORKERS = 64


@final
class ElasticMapper(ElasticStage[T]):
    """`map_fn` over the items of `source`, by workers whose number can change at any moment.

    Takes torchdata's `ParallelMapper` arguments and keeps their meaning; every item comes out exactly
    once, in order unless `in_order=False`. Width 0 calls `map_fn` in the consumer's own thread.

    An unordered stage stays exact under resume, and so do the stages behind it, which then ask for its state at
    every item. Behind it, further stages keep the order it gives; nodes that must see the very same items again
    (`Unbatch`, `Rebatch`, `Shuffle`, ...) turn it back into an ordered one.

    `method` says where it runs: `thread` (for what releases the GIL), `process` (for what holds it), `ray`,
    or `auto`: in threads, until a tuner finds that they wait for the GIL and tries processes.
    `max_concurrent` bounds the items in flight; without it they are twice the width, up to 64 while
    items are tiny, and for each process then two messages' worth (up to 32 items each: docs/lanes.md).
    `prebatch` makes a worker claim that many items together. `max_bytes` bounds the
    measured bytes of finished items that wait for the consumer. `timeout_s` bounds the function's time
    per item: it is checked while the consumer waits, so an item that hangs is reported after one to
    two times as long.

    `on_error` says what becomes of an item on which `map_fn` fails: `"raise"`, `retry(3, backoff_s=0.5)`, `"skip"` or
    `skip(max_share=0.001, quarantine="bad.jsonl")`, or both: `retry(3, then=skip())`. What is skipped is counted
    (`stats().num_skipped`), in the state too, so that a resumed run neither counts nor leaves it out twice.

    Raises ConfigError at construction, StageError (also an instance of the original error's class)
    from `next` in the failed item's place.

    >>> from torchdata.nodes import IterableWrapper
    >>> squares = ElasticMapper(IterableWrapper(range(5)), lambda n: n * n, num_workers=2)
    >>> next(squares), next(squares)
    (0, 1)
    >>> squares.resize(4)
    >>> list(squares)
    [4, 9, 16]
    """

    def __init__(
        self,
        source: BaseNode[X],
        map_fn: Callable[[X], T],
        num_workers: int,
        in_order: bool = True,
        method: Method = "thread",
        multiprocessing_context: str | None = None,
        max_concurrent: int | None = None,
        snapshot_frequency: int = 1,
        prebatch: int | None = None,
        *,
        name: str | None = None,
        max_workers: int = _MAX_WORKERS,
        min_workers: int = 0,
        max_bytes: int | None = None,
        timeout_s: float | None = None,
        on_error: OnError | Literal["raise", "skip"] = "raise",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        name = name or str(getattr(map_fn, "__name__", type(map_fn).__name__))
        if not callable(map_fn):
            raise ConfigError(f"stage '{name}': map_fn={map_fn!r} cannot be called. Pass a function of one item.")
        for what, value in (("max_concurrent", max_concurrent), ("prebatch", prebatch), ("max_bytes", max_bytes)):
            if value is not None and value < 1:
                raise ConfigError(f"stage '{name}': {what}={value} lets nothing through. Set it to 1 or more, or None.")
        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"stage '{name}': timeout_s={timeout_s} is no time at all. Set seconds above 0, or None.")
        plan = Plan(
            name=name,
            fn=map_fn,
            lanes=_open_lanes(
                method, map_fn, name=name, context=multiprocessing_context, is_bounded=max_bytes is not None
            ),
            in_order=in_order,
            snapshot_every=snapshot_frequency,
            prebatch=prebatch,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            on_error=checked_policy(f"stage '{name}'", on_error),
            tiny_s=_TINY_S if method == "thread" else _TINY_LANE_S,
            join_s=_JOIN_S,
            clock=clock,
        )
        self.max_concurrent = max_concurrent
        highest = max(max_workers, whole(num_workers, name))
        super().__init__(source, plan, width=num_workers, bounds=Bounds(low=min_workers, high=highest))

    @property
    def num_workers(self) -> int:
        """The width asked for."""
        return self._target

    def _widths(self) -> tuple[int, int | None]:
        return self._target, self.max_concurrent


@final
class ElasticPrefetcher(ElasticStage[T]):
    """Keeps up to `prefetch_factor` items of `source` ready, pulled by one thread; the depth can be resized.

    Takes torchdata's `Prefetcher` arguments. `max_bytes` bounds the measured bytes held ready; the next
    item is always let in. Its knob's width is the depth.

    >>> from torchdata.nodes import IterableWrapper
    >>> list(ElasticPrefetcher(IterableWrapper("abc"), prefetch_factor=2))
    ['a', 'b', 'c']
    """

    _has_width = False

    def __init__(
        self,
        source: BaseNode[T],
        prefetch_factor: int,
        snapshot_frequency: int = 1,
        *,
        name: str = "prefetch",
        max_prefetch: int = _MAX_WORKERS,
        max_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if prefetch_factor < 1:
            raise ConfigError(
                f"stage '{name}': prefetch_factor={prefetch_factor} keeps nothing ready. Set it to 1 or more, "
                "or leave the prefetcher out."
            )
        if max_bytes is not None and max_bytes < 1:
            raise ConfigError(f"stage '{name}': max_bytes={max_bytes} lets nothing in. Set it to 1 or more, or None.")
        plan = Plan(
            name=name,
            fn=None,
            lanes=None,
            in_order=True,
            snapshot_every=snapshot_frequency,
            prebatch=None,
            max_bytes=max_bytes,
            timeout_s=None,
            on_error=RAISE,
            tiny_s=_TINY_S,
            join_s=_JOIN_S,
            clock=clock,
        )
        bounds = Bounds(low=1, high=max(max_prefetch, prefetch_factor))
        super().__init__(source, plan, width=prefetch_factor, bounds=bounds)

    @property
    def prefetch_factor(self) -> int:
        """The depth asked for."""
        return self._target

    def _widths(self) -> tuple[int, int | None]:
        return 1, self._target


def _open_lanes(
    method: str, fn: Callable[[Any], Any], *, name: str, context: str | None, is_bounded: bool
) -> LanePool | None:
    if method == "thread":
        return None
    if method not in ("process", "ray", "auto"):
        raise ConfigError(f"stage '{name}': method={method!r} is unknown. Use 'thread', 'process', 'ray' or 'auto'.")
    from lightning_intune.flow.lanes import open_pool

    return open_pool(method, fn, name=name, context=context, is_bounded=is_bounded)
