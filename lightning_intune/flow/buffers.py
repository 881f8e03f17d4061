"""Where finished items wait for the consumer: in sequence, or as they come. Both keep exact state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Set
from typing import Any, final

NOTHING = object()
"""What `peek` gives when there is no item: `None` is an item like any other."""


class Buffer(ABC):
    """Finished items, keyed by sequence number. Every call is made under the owning run's lock.

    `low` is the number of the first item not yet delivered; `beyond` holds the delivered ones after
    it, so that low and beyond together say exactly what has come out.
    """

    low: int

    @abstractmethod
    def put(self, number: int, item: Any) -> bool:
        """Keep a finished item; True when the consumer can take one now."""

    @abstractmethod
    def peek(self) -> Any:
        """The next item for the consumer, left in place; `NOTHING` when there is none to take now."""

    @abstractmethod
    def pop(self) -> int:
        """Count the peeked item as delivered, forget it, and tell its number."""

    @abstractmethod
    def is_next(self, number: int) -> bool:
        """Whether the consumer may be waiting for just this item, so that it must be let in over any bound."""

    @abstractmethod
    def first_unneeded(self, failed: int) -> int:
        """From which number on no item will come out, since this one has failed."""

    @property
    @abstractmethod
    def beyond(self) -> Set[int]:
        """Numbers above `low` that were delivered already."""

    @abstractmethod
    def __len__(self) -> int: ...


@final
class InOrder(Buffer):
    """Items leave by ascending number, whatever order they were finished in."""

    def __init__(self, low: int, beyond: Iterable[int]) -> None:
        self.low = low
        self._items: dict[int, Any] = {}
        self._skip = set(beyond)  # left by an unordered run's state

    def put(self, number: int, item: Any) -> bool:
        self._items[number] = item
        return number == self.low

    def peek(self) -> Any:
        return self._items.get(self.low, NOTHING)

    def pop(self) -> int:
        number = self.low
        del self._items[number]
        self.low = number + 1
        while self._skip and self.low in self._skip:
            self._skip.discard(self.low)
            self.low += 1
        return number

    def is_next(self, number: int) -> bool:
        return number == self.low

    def first_unneeded(self, failed: int) -> int:
        return failed

    @property
    def beyond(self) -> Set[int]:
        return self._skip

    def __len__(self) -> int:
        return len(self._items)


@final
class AnyOrder(Buffer):
    """Items leave as they were finished; what left early is remembered until the gap closes."""

    def __init__(self, low: int, beyond: Iterable[int]) -> None:
        self.low = low
        self._items: deque[tuple[int, Any]] = deque()
        self._beyond = set(beyond)

    def put(self, number: int, item: Any) -> bool:
        self._items.append((number, item))
        return True

    def peek(self) -> Any:
        return self._items[0][1] if self._items else NOTHING

    def pop(self) -> int:
        number, _ = self._items.popleft()
        self._beyond.add(number)
        while self.low in self._beyond:
            self._beyond.discard(self.low)
            self.low += 1
        return number

    def is_next(self, number: int) -> bool:  # noqa: ARG002 - any item may be the next
        return not self._items

    def first_unneeded(self, failed: int) -> int:  # noqa: ARG002 - what is unfinished can be left
        return 0

    @property
    def beyond(self) -> Set[int]:
        return self._beyond

    def __len__(self) -> int:
        return len(self._items)
