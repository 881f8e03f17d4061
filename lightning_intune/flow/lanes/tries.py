"""How often the items of a dead lane are tried in another one."""

from __future__ import annotations

from typing import final

from lightning_intune.flow.lanes.lane import LaneDiedError, LaneDiedIdleError

_MAX_AT_WORK = 3
_MAX_IDLE = 20  # whoever kills idle processes over and over is to be named too, rather than outwaited


@final
class Tries:
    """The deaths of lanes that one item, or one chunk of them, was sent to.

    One that dies with an item in hand may have died of it: an item may kill three. One that had not read it cannot
    have (the OOM killer, an operator, a preempted machine): those cost the item nothing, until there were twenty.

    >>> tries = Tries()
    >>> [tries.may_go_on(LaneDiedError("killed")) for _ in range(3)]
    [True, True, False]
    >>> Tries().may_go_on(LaneDiedIdleError("killed"))
    True
    """

    def __init__(self) -> None:
        self._num_at_work = self._num_idle = 0

    def may_go_on(self, died: LaneDiedError) -> bool:
        """Whether to try once more after this death, which is counted."""
        if isinstance(died, LaneDiedIdleError):
            self._num_idle += 1
            return self._num_idle < _MAX_IDLE
        self._num_at_work += 1
        return self._num_at_work < _MAX_AT_WORK
