"""When items may be pulled one after another before the first is worked on, and what if the source stalls then."""

from __future__ import annotations

from typing import final

_QUICK_S = 1e-3  # an item that took longer was waited for
_QUICK_RUN = 64  # so many in succession that were not, and the next ones are trusted to come at once
_PULL_S = 300e-6  # of pulling before the work begins: about what a message to a lane takes on a busy machine
_PATIENCE_S = 0.01  # of a consumer who waits while items lie in a stalled claimer's hands


@final
class Hoard:
    """A claimer's items from a source that may hand over one at a time, and wait before any of them.

    A claim of several is begun only after a long run of quick items, and lasts for a fraction of a
    millisecond. Should the source stall in the middle, even until what was claimed is delivered, the
    consumer who waits looks after it: for that its wait has a limit, once per claim. Under the run's lock.
    """

    def __init__(self) -> None:
        self._num_quick = 0
        self.is_open = False
        """A claimer is pulling on with items in hand."""
        self._claim = self._seen = 0  # how many such claims there were, and when the consumer began to wait
        self._is_watched = False
        self._has_looked = False

    def goes_on(self, began_s: float, before_s: float, now_s: float) -> bool:
        """Whether to pull another item: the claim began, the last pull began and ended at these times."""
        self._num_quick = self._num_quick + 1 if now_s - before_s < _QUICK_S else 0
        return self._num_quick >= _QUICK_RUN and now_s - began_s < _PULL_S

    def open(self) -> bool:
        """Pull on; whether consumers who wait must be told, so that they wait with a limit."""
        if not self.is_open:
            self.is_open, self._claim = True, self._claim + 1
        if self._is_watched:
            return False
        self._has_looked = False
        return True

    def close(self) -> None:
        """What was pulled goes into work."""
        self.is_open = False

    def patience_s(self) -> float | None:
        """How long a consumer should now wait before it looks."""
        self._seen = self._claim
        self._is_watched = self._num_quick >= _QUICK_RUN and not self._has_looked
        return _PATIENCE_S if self._is_watched else None

    def is_stuck(self) -> bool:
        """After that wait: whether items lie in the hands of a claimer whom the source keeps waiting."""
        if self.is_open and self._claim != self._seen:
            return False  # it has only just begun: wait once more
        self._has_looked, self._is_watched = True, False
        return self.is_open
