"""Under a trainer: what each step cost this rank to compute, told to the exchange that dealt its batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, final

import torch

from lightning_intune.balance.bubble import BubbleStats
from lightning_intune.balance.exchange import BalancedExchange
from lightning_intune.flow.node import BaseNode, walk


@final
class BubbleWatch:
    """Measures a rank's computing step by step, without what it waits for others in DDP's backward pass.

    On a CPU that is the CPU time of the training thread up to the end of the backward pass: whoever waits spends none.
    On a GPU it is the device's time for the forward pass, by events that are read when they have passed: it has no
    collective in it (buffers that DDP broadcasts apart), and bubbles are shares, so that a part stands for the whole.
    The training thread's alone.
    """

    def __init__(self, exchange: BalancedExchange[Any], *, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._exchange, self._clock = exchange, cpu_clock
        self._step: int | None = None
        self._began_s = self._ended_s = 0.0
        self._began: torch.cuda.Event | None = None
        self._passing: deque[tuple[int, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._shown: BubbleStats | None = None

    @staticmethod
    def find(root: BaseNode[Any]) -> BubbleWatch | None:
        """Of the exchange in a graph, if there is one."""
        exchange = next((node for node in walk(root) if isinstance(node, BalancedExchange)), None)
        return None if exchange is None else BubbleWatch(exchange)

    def begin(self, step: int, device: torch.device) -> None:
        """A batch, number `step` of its epoch, is about to be trained on."""
        self._step, self._began = step, None
        if device.type == "cuda":
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()
        self._began_s = self._ended_s = self._clock()

    def has_looked_forward(self) -> None:
        """The forward pass is over."""
        if self._began is not None and self._step is not None:
            ended = torch.cuda.Event(enable_timing=True)
            ended.record()
            self._passing.append((self._step, self._began, ended))
            self._step = None  # of several backward passes the first counts

    def has_looked_back(self) -> None:
        """A backward pass is over; there may be more."""
        self._ended_s = self._clock()

    def end(self) -> BubbleStats | None:
        """The step is over: tell what it took, and return the window of steps that this has ended, if it has."""
        if self._step is not None and self._began is None:
            ended_s = self._ended_s if self._ended_s > self._began_s else self._clock()
            self._exchange.observe(ended_s - self._began_s, step=self._step)
        self._step = None
        self._tell_passed(wait=False)
        return self._new(self._exchange.bubbles)

    def settle(self) -> BubbleStats | None:
        """Training is over, on every rank: the last window, however short; None if nothing was left of it."""
        self._tell_passed(wait=True)
        return self._new(self._exchange.settle())

    def _tell_passed(self, *, wait: bool) -> None:
        while self._passing and (wait or self._passing[0][2].query()):
            step, began, ended = self._passing.popleft()
            ended.synchronize()
            self._exchange.observe(began.elapsed_time(ended) * 1e-3, step=step)

    def _new(self, stats: BubbleStats | None) -> BubbleStats | None:
        if stats is self._shown:
            return None
        self._shown = stats
        return stats
