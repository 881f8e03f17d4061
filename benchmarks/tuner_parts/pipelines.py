"""Eight live pipelines, each with another limit, built from the flow's own stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tuner_parts import work
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats

Stage = tuple[str, Callable[[Any], Any]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A pipeline to build: its stages, the trainer's time per batch, and the widths worth sweeping."""

    name: str
    stages: Callable[[], list[Stage]]
    trainer_ms: float = 0.0
    sweep: tuple[tuple[int, ...], ...]
    """Per stage the widths that the sweep for the best static setting tries."""
    memory_bytes: int | None = None
    """A budget for memory beside what the process holds at the start."""


class LivePipeline:
    """An endless elastic loader with a trainer that sleeps; knobs, meters, one batch per `advance`."""

    def __init__(self, kind: Kind, *, settle_s: float = 0.1) -> None:
        self.kind, self._settle_s = kind, settle_s
        root: Any = IterableSource(range(10**9))
        for name, fn in kind.stages():
            root = ElasticMapper(root, fn, num_workers=1, name=name)
        self.loader: ElasticLoader[Any] = ElasticLoader(root)
        self._items: Iterator[Any] = iter(self.loader)
        self._trainer_s = kind.trainer_ms / 1e3

    @property
    def knobs(self) -> Sequence[Knob]:
        return self.loader.knobs

    def read(self) -> FlowStats:
        return self.loader.stats()

    def advance(self) -> None:
        next(self._items)
        if self._trainer_s > 0:
            time.sleep(self._trainer_s)

    def set_widths(self, widths: Sequence[int]) -> None:
        for knob, width in zip(self.knobs, widths, strict=True):
            knob.turn(width)

    def rate(self, seconds: float) -> float:
        """Batches/s over about `seconds`, after the widths asked for are live and what was in flight before is gone."""
        began, count = time.perf_counter(), 0
        in_flight = sum(stage.num_in_flight for stage in self.read().stages)
        while (
            count < in_flight
            or time.perf_counter() - began < self._settle_s
            or any(k.live() != k.target() for k in self.knobs)
        ):
            self.advance()
            count += 1
            if time.perf_counter() - began > 3.0:
                break
        began, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - began < seconds:
            self.advance()
            count += 1
        return count / (time.perf_counter() - began)

    def full_bytes(self) -> float:
        """Bytes that all stages hold with every buffer full, at the present widths; 0 until items were measured."""
        return sum(stage.item_bytes * stage.max_in_flight for stage in self.read().stages)

    def close(self) -> None:
        self.loader.shutdown()


KINDS = (
    Kind(
        name="cpu_bound",
        stages=lambda: [("decode", work.native(3)), ("parse", work.native(6)), ("collate", work.native(3))],
        sweep=((1, 2, 3), (1, 2, 3, 4), (1, 2, 3)),
    ),
    Kind(
        name="latency_bound",
        stages=lambda: [("read", work.waiting(20, 0.5)), ("decode", work.native(1.5)), ("collate", work.native(0.5))],
        sweep=((12, 16, 20, 24), (1, 2, 3), (1, 2)),
    ),
    Kind(
        name="gil_bound",
        stages=lambda: [("read", work.native(1)), ("parse", work.python(5)), ("hash", work.python(3))],
        sweep=((1, 2), (1, 2, 3), (1, 2)),
    ),
    Kind(
        name="mixed",
        stages=lambda: [("read", work.waiting(15, 1)), ("decode", work.native(5)), ("hash", work.python(2))],
        sweep=((2, 3, 4, 6, 8), (1, 2, 3), (1, 2)),
    ),
    Kind(
        name="skewed",
        stages=lambda: [
            ("read", work.native(0.5)),
            ("decode", work.native(14)),
            ("hash", work.native(0.5)),
            ("collate", work.native(1)),
        ],
        sweep=((1, 2), (1, 2, 3, 4), (1,), (1, 2)),
    ),
    Kind(
        name="already_optimal",
        stages=lambda: [("decode", work.native(8)), ("collate", work.native(8))],
        sweep=((1, 2), (1, 2)),
    ),
    Kind(
        name="trainer_bound",
        stages=lambda: [("read", work.waiting(12)), ("decode", work.native(6)), ("collate", work.native(2))],
        trainer_ms=10,
        sweep=((1, 2, 3), (1, 2), (1, 2)),
    ),
    Kind(
        name="memory_heavy",
        stages=lambda: [("read", work.waiting(15)), ("decode", work.big(8)), ("scale", work.reduce_big(2))],
        sweep=((8, 16, 28, 40), (1, 2, 4), (1, 2, 4)),
        memory_bytes=400 << 20,
    ),
)
