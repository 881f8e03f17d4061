"""What a fork leaves behind in the child: locks that nobody there will ever let go."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Has locks, or threads, that do not cross a fork."""

    def after_fork(self) -> None:
        """Called in the child, by its only thread: make the locks anew, forget the threads."""
        ...


_ALL: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(owner: Forked) -> None:
    """Have `owner.after_fork` called in every forked child in which `owner` is alive."""
    _ALL.add(owner)


def _after_fork() -> None:
    for owner in list(_ALL):
        owner.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
