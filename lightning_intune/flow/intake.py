"""Where a run's items come from: numbered pulls from the source, and the states to resume from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Bursting, State, has_fixed_order
from lightning_intune.flow.snapshots import Snapshots, read_state


@final
class Intake:
    """Numbers the source's items from the epoch's start; drops those a resumed state calls delivered.

    `pull` is called outside the run's lock by one claimer at a time; all else under that lock.
    """

    def __init__(
        self,
        source: BaseNode[Any],
        state: State | None,
        *,
        every: int,
        prebatch: int | None,
        clock: Callable[[], float],
    ) -> None:
        # Behind an unordered stage every item needs the source's state behind it, so items come one by one.
        self.has_fixed_order = is_fixed = has_fixed_order(source)
        self._source, self._prebatch = source, prebatch if is_fixed else None
        self._burst = source if is_fixed and isinstance(source, Bursting) else None
        upstream, self.next_number, self.low, self.beyond = (
            (None, 0, 0, frozenset[int]()) if state is None else read_state(state)
        )
        source.reset(upstream)
        self._skip = set(self.beyond)
        self._error: Exception | None = None
        self._snapshots = Snapshots(
            source.state_dict(), every=every, position=self.next_number, clock=clock, is_exact=not is_fixed
        )

    @property
    def bursting(self) -> bool:
        """Whether the source can hand over several items without waiting for the later ones."""
        return self._burst is not None

    @property
    def first_missing(self) -> int:
        """The number of the first item that was neither pulled nor delivered before the resume."""
        number = max(self.next_number, self.low)
        while number in self._skip:
            number += 1
        return number

    def pull(self, limit: int) -> tuple[Sequence[int], list[Any], State | None]:
        """1 to `limit` items, their numbers, and the source's state behind them when one is due."""
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # it leads to this frame (see `run`)
        while self.next_number < self.low or self.next_number in self._skip:
            try:
                next(self._source)
            except StopIteration:
                raise self._too_short() from None
            self._skip.discard(self.next_number)
            self.next_number += 1
        first = self.next_number
        is_single = self._skip or (self._prebatch is None and self._burst is None)
        items = self._pull(1 if is_single else limit)
        self.next_number += len(items)
        snapshot = None
        if self._error is None:
            snapshot = self._snapshots.take(self.next_number, self._source.state_dict)
        numbers = range(first, self.next_number)
        del self  # as above: `_error` may be new
        return numbers, items, snapshot

    def _too_short(self) -> ConfigError:
        return ConfigError(
            f"the state was saved after more items than the {self.next_number} this source has: its data has changed. "
            "Resume with the same data, or start the epoch anew."
        )

    def _pull(self, limit: int) -> list[Any]:
        if limit == 1:
            return [next(self._source)]
        if self._prebatch is None:
            assert self._burst is not None
            return self._burst.next_burst(limit)
        items = [next(self._source)]
        while len(items) < limit:
            try:
                items.append(next(self._source))
            except StopIteration:
                break  # the source says so again at the next claim
            except Exception as error:  # noqa: BLE001 - raised by the next pull: what came before it is delivered
                self._error = error
                break
        del self  # as above
        return items

    def keep(self, position: int, snapshot: State, low: int) -> None:
        """Remember the source's state before item `position`; `low` is the first item not delivered."""
        self._snapshots.add(position, snapshot, low)

    def state(self, low: int, beyond: Iterable[int]) -> State:
        """State after everything below `low`, and `beyond`, was delivered."""
        return self._snapshots.state(low, beyond)
