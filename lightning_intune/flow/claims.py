"""What a run has taken from its source and not yet delivered, and how much more it may take."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, final

from lightning_intune.flow.buffers import Buffer
from lightning_intune.flow.crew import Work
from lightning_intune.flow.intake import Intake
from lightning_intune.flow.node import State
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.stage_meter import StageMeter

_MAX_AHEAD = 4096  # items between the first undelivered and the last claimed


@final
class Claims:
    """The items between source and consumer. Under the gate's lock, but for `limit`, which is the claimer's.

    The claimer, one at a time, pulls from the intake itself, outside the lock: what the source raises there must not
    lead to the buffer, where it may end up (see `run`).
    """

    def __init__(self, plan: Plan, intake: Intake, buffer: Buffer, meter: StageMeter) -> None:
        self._plan, self._intake, self._buffer, self._meter = plan, intake, buffer, meter
        self.inbox: deque[tuple[int, Any]] = deque()
        """Claimed, and not yet in any worker's hands."""
        self.num_in_flight = 0
        """Claimed, and not delivered."""
        self.bound = 1
        """How many of those there may be."""
        self.has_claimer = False
        """Somebody is in the source, or about to be."""
        self.has_ended = False
        """Nothing more will be claimed: the source is exhausted or has failed, or an item or the stage itself has."""
        self.width = 0
        """How many workers are asked for."""
        self._fixed_bound: int | None = None
        self._first_unneeded = sys.maxsize

    @property
    def room(self) -> int:
        """How many more items may be claimed. One slow item in an unordered stage must not make the state grow."""
        return min(self.bound - self.num_in_flight, self._buffer.low + _MAX_AHEAD - self._intake.next_number)

    @property
    def wants_worker(self) -> bool:
        """Whether there is something to do for one that does nothing now."""
        return bool(self.inbox) or (not self.has_claimer and self.room > 0)

    @property
    def is_exhausted(self) -> bool:
        """Whether there is nothing to claim any more, nor to draw."""
        return self.has_ended and not self.inbox

    def limit(self, *, hoards: bool = False) -> int:
        """How many items to pull at once; to a claimer who `hoards`, in how many pulls that follow each other."""
        return self._plan.claim(self.room, self._meter, bursting=hoards or self._intake.bursting)

    def add(self, numbers: Sequence[int], snapshot: State | None) -> None:
        """Count what was pulled, and keep the source's state behind it where one was taken."""
        self.num_in_flight += len(numbers)
        if snapshot is not None:
            self._intake.keep(numbers[-1] + 1, snapshot, self._buffer.low)

    def draw(self, count: int | None = None) -> Work:
        """Up to `count` items of the inbox, or a worker's share of them."""
        inbox = self.inbox
        count = self._plan.share(self._meter) if count is None else count
        return [inbox.popleft() for _ in range(min(count, len(inbox)))]

    def give_back(self, work: Work) -> None:
        """These were not worked on after all, and are the next to be drawn."""
        self.inbox.extendleft(reversed(self._needed(work)))

    def end_before(self, number: int) -> None:
        """Items from this number on are not needed, as one has failed; those before it are worked off still."""
        self.has_ended = True
        self._first_unneeded = min(self._first_unneeded, number)
        needed = self._needed(self.inbox)
        self.inbox.clear()
        self.inbox.extend(needed)

    def _needed(self, work: Iterable[tuple[int, Any]]) -> Work:
        return [(number, item) for number, item in work if number < self._first_unneeded]

    def fix(self, width: int, bound: int | None) -> None:
        """So many workers are asked for, and at most so many items in flight; None: the engine chooses."""
        self.width, self._fixed_bound = width, bound
        self.review_bound()

    def review_bound(self) -> None:
        """Set it anew: the width has changed, or what is known of the items."""
        fixed = self._fixed_bound
        self.bound = fixed if fixed is not None else self._plan.max_in_flight(self.width, self._meter)

    def state(self) -> State:
        """The source's part in the state after the last item delivered."""
        return self._intake.state(self._buffer.low, self._buffer.beyond)
