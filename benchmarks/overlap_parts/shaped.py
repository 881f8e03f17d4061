"""TorchRec's messages on the shaped link, from the outside: the functions of torch that it sends by are replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, final

import torch.distributed as dist
from torch import Tensor

from benchmarks.overlap_parts.waits import Wait, Waits
from lightning_intune.overlap import Link


@final
@dataclass(frozen=True, kw_only=True)
class Message:
    """One that TorchRec sent, and what its trainer waited for it; seconds by `Messages.waits.now`."""

    wait: Wait
    num_bytes: int
    sent_s: float
    ended_s: float


@final
@dataclass(kw_only=True)
class Messages:
    """Those of a rank, in the order of the waits that ended; all waits are the trainer thread's."""

    link: Link | None
    waits: Waits
    sleep: Callable[[float], None] = time.sleep
    found: list[Message] = field(default_factory=list[Message])


class _Work(dist.Work):
    """A message under way: its wait ends when gloo's does, but not before the link's."""

    def __init__(self, work: Any, tensor: Tensor, num_bytes: int, number: int, messages: Messages) -> None:
        super().__init__()
        self._work, self._num_bytes, self._number, self._messages = work, num_bytes, number, messages
        self._kind = "rows" if tensor.is_floating_point() else "ids"
        self._is_done = False

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        if self._is_done:
            return True
        waits, link = self._messages.waits, self._messages.link
        begun_s = waits.now()
        self._work.wait(timeout)
        came_s = waits.board[:, self._number]
        due_s = float(came_s.max()) + (0.0 if link is None else link.seconds(self._num_bytes))
        left_s = due_s - waits.now()
        if left_s > 0:
            self._messages.sleep(left_s)
        ended_s = waits.now()
        self._is_done = True
        wait = Wait(begun_s=begun_s, ended_s=ended_s, coming=self._number, kind=self._kind)
        waits.found.append(wait)
        message = Message(
            wait=wait,
            num_bytes=self._num_bytes,
            sent_s=float(came_s[waits.rank]),
            ended_s=ended_s if link is None or begun_s < due_s else due_s,
        )
        self._messages.found.append(message)
        return True


@contextmanager
def shaped(messages: Messages) -> Generator[None]:
    """Until the end, what TorchRec 1.8's row-wise sharding sends takes as long as `messages.link` would take for it.

    A message ends no earlier than the link's delay and the bytes that this rank sends to others, or gets from them,
    whichever are more, would let it, counted from when the last rank sent its part. Each is alone on the link: of two
    under way at once neither slows the other down, which flatters TorchRec. A reduce-scatter and an all-gather are
    taken to send what they must: (ranks - 1) / ranks of the whole.
    """
    names = {"all_to_all_single": _all_to_all, "reduce_scatter_tensor": _scatter, "all_gather_into_tensor": _gather}
    before = {name: getattr(dist, name) for name in names}
    for name, bytes_of in names.items():
        setattr(dist, name, _replaced(name, before[name], bytes_of, messages))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(dist, name, call)


def _replaced(
    name: str, call: Callable[..., Any], bytes_of: Callable[..., int], messages: Messages
) -> Callable[..., Any]:
    def replaced(output: Any = None, input: Any = None, *args: Any, **settings: Any) -> Any:  # noqa: A002 - torch's name
        if not settings.pop("async_op", False):
            raise NotImplementedError(f"{name} that is waited for at once: TorchRec 1.8's row-wise sharding has none")
        number = messages.waits.came()
        work = call(output, input, *args, **settings, async_op=True)
        return _Work(work, input, bytes_of(output, input, *args, **settings), number, messages)

    return replaced


def _all_to_all(
    output: Tensor,
    input: Tensor,  # noqa: A002 - torch's name
    output_split_sizes: list[int] | None = None,
    input_split_sizes: list[int] | None = None,
    group: Any = None,
) -> int:
    rank, size = dist.get_rank(group), dist.get_world_size(group)

    def others(tensor: Tensor, splits: list[int] | None) -> int:
        own = len(tensor) // size if splits is None else splits[rank]
        return tensor[own:].numel()

    return max(others(input, input_split_sizes), others(output, output_split_sizes)) * input.element_size()


def _scatter(output: Tensor, _: Tensor, group: Any = None) -> int:
    return output.numel() * output.element_size() * (dist.get_world_size(group) - 1)


def _gather(_: Tensor, input: Tensor, group: Any = None) -> int:  # noqa: A002 - torch's name
    return input.numel() * input.element_size() * (dist.get_world_size(group) - 1)
