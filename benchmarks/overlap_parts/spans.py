"""What a rank did when: recorded from the outside while a contestant trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from benchmarks.overlap_parts.contestants import Contestant
from benchmarks.overlap_parts.shaped import Messages
from lightning_intune.overlap.exchange import Exchange
from lightning_intune.overlap.transport import Transport

TRAINER, LINK, WORKER = "trainer thread", "messages", "exchange thread"
_METHODS = {
    "ask": "ids",
    "mark": "marks",
    "fetch_early": "early rows",
    "fetch_late": "late rows",
    "give_urgent": "urgent gradients",
    "give_rest": "other gradients",
}


@final
@dataclass(frozen=True, kw_only=True)
class Span:
    """Seconds by `time.perf_counter`."""

    row: str
    name: str
    begun_s: float
    ended_s: float
    num_bytes: int = 0


@final
@dataclass(kw_only=True)
class Recorder:
    """Spans of one contestant; each thread appends its own."""

    spans: list[Span] = field(default_factory=list[Span])
    steps: list[float] = field(default_factory=list[float])
    """When each forward pass began."""
    kind: str = ""
    """What the exchange thread is about."""
    _marks: list[float] = field(default_factory=list[float])

    def clock(self) -> float:
        """For `OverlappedTrainPipeline`, which reads it when a wait for rows begins, and when it ends."""
        self._marks.append(time.perf_counter())
        if len(self._marks) == 2:
            begun_s, ended_s = self._marks
            self._add(TRAINER, "waiting", begun_s, ended_s)
            self._marks.clear()
        return time.perf_counter()

    def watch(self, one: Contestant) -> None:
        """Forward, backward and dense optimizer step."""
        last: list[float] = [0.0]

        def passed(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                now_s = time.perf_counter()
                if name:
                    self._add(TRAINER, name, last[0], now_s)
                else:
                    self.steps.append(now_s)
                last[0] = now_s

            return hook

        one.net.register_forward_pre_hook(passed(""))
        one.net.register_forward_hook(passed("forward"))
        one.optimizer.register_step_pre_hook(passed("backward"))
        one.optimizer.register_step_post_hook(passed("optimizer"))

    def take(self, messages: Messages) -> None:
        """TorchRec's messages and waits. Gradients are what is sent in a backward pass."""
        backward = [(span.begun_s, span.ended_s) for span in self.spans if span.name == "backward"]
        for one in messages.found:
            is_gradient = any(begun_s <= one.sent_s <= ended_s for begun_s, ended_s in backward)
            name = "ids" if one.kind == "ids" else "gradients" if is_gradient else "rows"
            self._add(LINK, name, one.sent_s, one.ended_s, one.num_bytes)
            waiting = "waiting for ids" if one.kind == "ids" else "waiting"
            self._add(TRAINER, waiting, one.wait_begun_s, one.wait_ended_s)

    @contextmanager
    def exchanges(self, *, overlap: bool) -> Generator[None]:
        """Until the end, note what every exchange of this process does."""
        before = {name: getattr(Exchange, name) for name in _METHODS}
        for name, kind in _METHODS.items():
            setattr(Exchange, name, self._noted(before[name], kind if overlap else kind.split()[-1]))
        try:
            yield
        finally:
            for name, method in before.items():
                setattr(Exchange, name, method)

    def _noted(self, method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def noted(*args: Any, **settings: Any) -> Any:
            self.kind = kind
            begun_s = time.perf_counter()
            try:
                return method(*args, **settings)
            finally:
                self._add(WORKER, "reads and updates", begun_s, time.perf_counter())

        return noted

    def message(self, begun_s: float, num_bytes: int) -> None:
        """One of the exchange thread ends now."""
        self._add(WORKER, self.kind, begun_s, time.perf_counter(), num_bytes)

    def _add(self, row: str, name: str, begun_s: float, ended_s: float, num_bytes: int = 0) -> None:
        self.spans.append(Span(row=row, name=name, begun_s=begun_s, ended_s=ended_s, num_bytes=num_bytes))


@final
class Traced:
    """A transport whose messages are noted."""

    def __init__(self, inner: Transport, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder

    @property
    def rank(self) -> int:
        return self._inner.rank

    @property
    def world_size(self) -> int:
        return self._inner.world_size

    @property
    def device_types(self) -> tuple[str, ...]:
        return self._inner.device_types

    def open(self) -> None:
        self._inner.open()

    def describe(self) -> str:
        return self._inner.describe()

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        begun_s = time.perf_counter()
        received = self._inner.all_to_all(sent, sizes_out, sizes_in)
        others_out, others_in = (sum(sizes) - sizes[self.rank] for sizes in (sizes_out, sizes_in))
        self._recorder.message(begun_s, max(others_out, others_in) * sent.element_size())
        return received
