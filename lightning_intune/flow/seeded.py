"""Nodes whose order is drawn from a seed and the epoch."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State

T = TypeVar("T")


class Seeded(Node[T]):
    """A node that draws from (`_seed`, `_epoch`); a state brings its own of both along."""

    def __init__(self, source: BaseNode[Any], *, seed: int) -> None:
        super().__init__(source)
        self._seed, self._next_epoch = checked_seed(type(self).__name__, seed), 0

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch
        super().set_epoch(epoch)

    def _begin(self, state: State | None, **start: Any) -> State:
        """`state`, or that of a fresh pass, which begins at `start`."""
        begun: State = state or {"seed": self._seed, "epoch": self._next_epoch, **start}
        for what in ("seed", "epoch"):
            if not isinstance(begun[what], int):
                raise TypeError(f"{type(self).__name__}: its {what} is {begun[what]!r}")
        self._seed, self._epoch = begun["seed"], begun["epoch"]
        return begun


def checked_seed(what: str, seed: int) -> int:
    """`seed`, or a ConfigError in the name of `what`: NumPy's bit generators take no negative seed."""
    if seed < 0:
        raise ConfigError(f"{what}: seed={seed} is negative. Set seed to 0 or more.")
    return seed
