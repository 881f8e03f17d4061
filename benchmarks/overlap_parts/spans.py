"""What a rank did when: recorded from the outside while a contestant trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from benchmarks.overlap_parts.contestants import Ours
from benchmarks.overlap_parts.rival import Rival
from lightning_intune.overlap import GlooTransport
from lightning_intune.overlap.exchange import Exchange

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

    def watch(self, one: Rival | Ours) -> None:
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

    def take(self, one: Rival | Ours) -> None:
        """What its trainer waited for, and TorchRec's messages: gradients are those sent in a backward pass."""
        for wait in one.waits.found:
            self._add(TRAINER, "waiting for ids" if wait.kind == "ids" else "waiting", wait.begun_s, wait.ended_s)
        backward = [(span.begun_s, span.ended_s) for span in self.spans if span.name == "backward"]
        for message in one.messages.found if isinstance(one, Rival) else []:
            is_gradient = any(begun_s <= message.sent_s <= ended_s for begun_s, ended_s in backward)
            name = "ids" if message.wait.kind == "ids" else "gradients" if is_gradient else "rows"
            self._add(LINK, name, message.sent_s, message.ended_s, message.num_bytes)

    @contextmanager
    def exchanges(self, *, overlap: bool) -> Generator[None]:
        """Until the end, note what every exchange of this process does, and its messages over gloo."""
        before = {name: getattr(Exchange, name) for name in _METHODS}
        for name, kind in _METHODS.items():
            setattr(Exchange, name, self._noted(before[name], kind if overlap else kind.split()[-1]))
        send = GlooTransport.all_to_all
        GlooTransport.all_to_all = self._sent(send)
        try:
            yield
        finally:
            GlooTransport.all_to_all = send
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

    def _sent(self, send: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def sent(transport: GlooTransport, values: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
            begun_s = time.perf_counter()
            received = send(transport, values, sizes_out, sizes_in)
            num_values = max(sum(sizes) - sizes[transport.rank] for sizes in (sizes_out, sizes_in))  # to or from others
            self._add(WORKER, self.kind, begun_s, time.perf_counter(), num_values * values.element_size())
            return received

        return sent

    def _add(self, row: str, name: str, begun_s: float, ended_s: float, num_bytes: int = 0) -> None:
        self.spans.append(Span(row=row, name=name, begun_s=begun_s, ended_s=ended_s, num_bytes=num_bytes))
