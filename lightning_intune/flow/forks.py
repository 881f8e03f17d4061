"""What a fork leaves behind in the child: locks that nobody there will ever let go."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

L = TypeVar("L")


class Forked(Protocol):
    """Has locks, or threads, that do not cross a fork."""

    def after_fork(self) -> None:
        """Called in the child, by its only thread: make the locks anew, forget the threads."""
        ...


_ALL: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(owner: Forked) -> None:
    """Have `owner.after_fork` called in every forked child in which `owner` is alive."""
    _ALL.add(owner)


_LOCKS: weakref.WeakKeyDictionary[Any, list[tuple[str, Callable[[], Any]]]] = weakref.WeakKeyDictionary()


def renewed_lock(owner: object, name: str, make: Callable[[], L]) -> L:
    """A lock for `owner` to keep under `name`, where a forked child finds another: nobody there will let this one go.

    >>> import threading
    >>> class Box:
    ...     def __init__(self) -> None:
    ...         self.lock = renewed_lock(self, "lock", threading.Lock)
    >>> Box().lock.acquire(blocking=False)
    True
    """
    _LOCKS.setdefault(owner, []).append((name, make))
    return make()


def _after_fork() -> None:
    for owner, locks in list(_LOCKS.items()):
        for name, make in locks:
            setattr(owner, name, make())
    for owner in list(_ALL):
        owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
