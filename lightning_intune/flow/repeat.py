"""Several passes over a source as one epoch."""

from __future__ import annotations

from typing import Any, TypeVar, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State, set_epoch

T = TypeVar("T")

MAX_PASSES = 1 << 20
"""Where the number of passes per epoch is open: by this much the epoch numbers of two epochs' passes are apart."""


@final
class Repeat(Node[T]):
    """`source` passed over `num_passes` times, or for ever with None, as one epoch.

    Its sources are told a new epoch before every pass, so that seeded orders differ between them: pass p of epoch e
    is the sources' epoch e * num_passes + p (e * 2**20 + p where it never ends). To stop after a number of items put
    `Take` behind it. Stages between the source and here run dry at the end of every pass: put Repeat as near to the
    source as may be.

    RuntimeError from `next` for an endless repetition of nothing.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> list(Repeat(IterableSource("ab"), 2))
    ['a', 'b', 'a', 'b']
    """

    def __init__(self, source: BaseNode[T], num_passes: int | None = None) -> None:
        super().__init__(source)
        if num_passes is not None and num_passes < 1:
            raise ConfigError(
                f"Repeat: num_passes={num_passes} gives no item. Set it to 1 or more, or None to go on for ever."
            )
        self._source, self._num_passes, self._next_epoch = source, num_passes, 0

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch  # the sources hear of it at the next reset: a pass may be going on

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state: State = initial_state or {"epoch": self._next_epoch, "pass": 0, "source": None}
        self._epoch, self._pass = state["epoch"], state["pass"]
        self._begin_pass(state["source"])

    def next(self) -> T:
        while True:
            try:
                item = next(self._source)
            except StopIteration:
                if self._num_passes is not None and self._pass + 1 >= self._num_passes:
                    raise
                if self._num_passes is None and self._empty:
                    raise RuntimeError(
                        "Repeat: a pass over the source gave no item, and for ever repeating it would never give one. "
                        "See why the source is empty, or set num_passes."
                    ) from None
                self._pass += 1
                self._begin_pass(None)
            else:
                self._empty = False
                return item

    def _begin_pass(self, state: State | None) -> None:
        self._empty = state is None
        reset_in_epoch(self._source, self._epoch * (self._num_passes or MAX_PASSES) + self._pass, state)

    def get_state(self) -> State:
        return {"epoch": self._epoch, "pass": self._pass, "source": self._source.state_dict()}


def reset_in_epoch(source: BaseNode[Any], epoch: int, state: State | None) -> None:
    """Tell `source` its epoch, where it can hear, and reset it."""
    set_epoch(source, epoch)
    source.reset(state)
