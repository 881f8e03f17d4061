"""What a stage does, fixed for its life; and how its widths become numbers of items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from lightning_intune.flow.lanes.lane import LanePool
from lightning_intune.flow.on_error import RAISE, OnError
from lightning_intune.flow.stage_meter import StageMeter

_MAX_CLAIM = 64  # items one claim may hold
_MAX_MESSAGE = 32  # items one message to a lane may hold: at 32 the way there and back is 2 us an item
_MESSAGE_BYTES = 2 << 20  # and of what size: 64 KiB items then cost a quarter of one by one, 1 MiB items 3 quarters
_SHARE_OF_BOUND = 8  # of a stage that bounds its bytes, one message may hold so small a part
_TINY_THREAD_BYTES = 16 << 10
_CLAIMS_PER_TINY = 4  # a claim should take as long as that many items that only just count as tiny
_TINY_IN_FLIGHT = 64  # how many tiny items may be in flight: one wake-up per half of them


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A stage's settings. Widths are not among them."""

    name: str
    fn: Callable[[Any], Any] | None
    """None passes items on, as a prefetcher does."""
    lanes: LanePool | None
    """None calls the function in the worker's own thread."""
    in_order: bool
    snapshot_every: int
    prebatch: int | None
    """Items per claim, waited for one by one; None claims what is there."""
    max_bytes: int | None
    """Bound on measured bytes waiting for the consumer; the head of the line is always let in."""
    timeout_s: float | None
    on_error: OnError = RAISE
    tiny_s: float
    """Items that take less are claimed several together, and wake no second worker by themselves."""
    join_s: float
    clock: Callable[[], float]

    def max_in_flight(self, width: int, meter: StageMeter) -> int:
        """Items that may be claimed and undelivered, where the user has set no bound."""
        bound = 2 * max(1, width) * (self.prebatch or self.share(meter))
        return max(bound, self._within_bytes(_TINY_IN_FLIGHT, meter)) if meter.tiny else bound

    @property
    def tiny_bytes(self) -> int:
        """An item larger than this is never tiny, however quick it is. In a lane two of this size fill a message."""
        return _TINY_THREAD_BYTES if self.lanes is None else self._message_bytes // 2

    @property
    def _message_bytes(self) -> int:
        return _MESSAGE_BYTES if self.max_bytes is None else min(_MESSAGE_BYTES, self.max_bytes // _SHARE_OF_BOUND)

    @property
    def hoards(self) -> bool:
        """Whether several items may be pulled one by one and sent to a lane together."""
        return self.lanes is not None and self.prebatch is None and self.timeout_s is None

    @property
    def within_s(self) -> float:
        """How long a lane may work on several items that were taken for tiny, until it hands back the rest."""
        return math.inf if self.prebatch is not None else 2.0 * _CLAIMS_PER_TINY * self.tiny_s

    def claim(self, room: int, meter: StageMeter, *, bursting: bool) -> int:
        """How many items to pull at once: several only if none of them is then waited for, or `prebatch` says so."""
        room = max(1, room)
        if self.prebatch is not None:
            return min(self.prebatch, room)
        if self.timeout_s is not None or not meter.tiny or not bursting:
            return 1
        return min(self._together(meter), room)

    def share(self, meter: StageMeter) -> int:
        """How many claimed items a worker takes at once: one in a thread, a message's worth in a lane."""
        if self.lanes is None or self.timeout_s is not None:  # the timeout is one item's
            return 1
        return self.prebatch or (self._together(meter) if meter.tiny else 1)

    def _together(self, meter: StageMeter) -> int:
        most = _MAX_CLAIM if self.lanes is None else self._within_bytes(_MAX_MESSAGE, meter)
        return max(1, min(most, int(_CLAIMS_PER_TINY * self.tiny_s / max(meter.service_s, 1e-6))))

    def _within_bytes(self, count: int, meter: StageMeter) -> int:
        """`count` items, or as many as a message holds; in threads no bytes are moved."""
        return count if self.lanes is None else min(count, int(self._message_bytes / max(meter.most_bytes, 1.0)))
