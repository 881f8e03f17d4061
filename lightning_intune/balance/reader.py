"""One rank's reading: one shard of the data after another, and where to resume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from lightning_intune.flow.node import BaseNode

T = TypeVar("T")

Part = dict[str, Any]
"""A shard that has samples left: `shard` (number, how many there are), `source` (its state, None: its start), and
`done`, which of the samples from there on are out already, as sorted offsets."""


@final
@dataclass(frozen=True, kw_only=True)
class Block(Generic[T]):
    """What was read for one round."""

    samples: list[T]
    places: list[tuple[int, int]]
    """By sample: the part (of `parts`) and the offset in it that it came from."""
    parts: list[Part]
    """Where to resume, so that the same block is read again."""
    error: Exception | None


@final
class ShardReader(Generic[T]):
    """Reads the shards of `parts` in their order, from `make(number, num_shards)`. One thread at a time."""

    def __init__(self, make: Callable[[int, int], BaseNode[T]], parts: Sequence[Part]) -> None:
        self._make, self._parts = make, list(parts)
        self._source: BaseNode[T] | None = None  # of the first part, once it has begun
        self._offset = 0  # samples pulled since that part's `source`
        self._begin()

    def parts(self) -> list[Part]:
        """Where to resume behind all that was read."""
        if self._source is None:
            return list(self._parts)
        first = self._parts[0]
        done = [offset - self._offset for offset in first["done"] if offset >= self._offset]
        return [{**first, "source": self._source.state_dict(), "done": done}, *self._parts[1:]]

    def read(self, size: int, stopped: threading.Event) -> Block[T]:
        """Up to `size` samples; fewer at the end, on an error, and when `stopped`."""
        parts: list[Part] = []
        base, offset_0 = len(self._parts), self._offset
        samples: list[T] = []
        places: list[tuple[int, int]] = []
        error: Exception | None = None
        try:
            if not stopped.is_set():
                parts = self.parts()
            while len(samples) < size and self._source is not None and not stopped.is_set():
                try:
                    sample = next(self._source)
                except StopIteration:
                    self._end_part()
                    continue
                part, offset = base - len(self._parts), self._offset
                self._offset += 1
                if offset not in self._done:
                    samples.append(sample)
                    places.append((part, offset - offset_0 if part == 0 else offset))
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error = raised
        return Block(samples=samples, places=places, parts=parts, error=error)

    def _begin(self) -> None:
        if not self._parts:
            self._source = None
            return
        first = self._parts[0]
        self._source = self._make(*first["shard"])
        self._source.reset(first["source"])
        self._offset, self._done = 0, frozenset(first["done"])

    def _end_part(self) -> None:
        self._parts.pop(0)
        self._begin()


def fresh_part(number: int, num_shards: int) -> Part:
    """A shard from its start."""
    return {"shard": [number, num_shards], "source": None, "done": []}


def without(parts: Sequence[Part], delivered: Sequence[tuple[int, int]]) -> list[Part]:
    """`parts`, with the samples at the places `delivered` out as well."""
    more: dict[int, list[int]] = {}
    for part, offset in delivered:
        more.setdefault(part, []).append(offset)
    return [{**part, "done": sorted([*part["done"], *more.get(number, [])])} for number, part in enumerate(parts)]
