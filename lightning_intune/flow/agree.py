"""The same number of steps on every rank: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.communicator import Communicator, GlooCommunicator
from lightning_intune.flow.node import BaseNode, Node, State, StoppedError
from lightning_intune.flow.padding import zero_weight
from lightning_intune.flow.rank_share import RankShare
from lightning_intune.flow.verdict import Mode, unkept, verdict
from lightning_intune.flow.window import Window

T = TypeVar("T")

_JOIN_S = 5.0


@final
class EqualSteps(Node[T]):
    """The items of `source`, on every rank equally many: with it a step that begins on one rank exists on all.

    DDP waits for ever for a rank that has run out, and filters, token budgets and uneven files make ranks run out at
    different steps. `mode="drop"` ends every rank with the first that ends; `mode="pad"` lets the others go on and
    gives a rank that has ended copies of its last item, made by `pad` to weigh nothing (default: `zero_weight`, for
    `Batch`). Put it behind everything that changes how many items there are; pinning and copying to the device may
    follow it.

    Ranks agree on `window` items at a time: while one window is trained on, a thread pulls the next and gathers the
    ranks' counts through `communicator` (default: a gloo group of its own), so that no step waits for it but the
    first. Up to two windows of items are held. Every rank must take its items in step with the others, as DDP does.
    With one rank items pass through.

    With `num_items` the epochs have a length that is known beforehand, `len`: what this rank's source surely gives
    (`drop`) or gives at most (`pad`), or a list of that for every rank. Of the former the ranks tell each other once,
    at the first `len` or item, whichever comes first: every rank must come to it, as Lightning's do. The epoch then has
    exactly the least (`drop`) or greatest (`pad`) of them as its steps, ranks that end before being padded up to it; a
    source that does not keep to its `num_items` is a RuntimeError on all ranks, at the epoch's end. For Parquet,
    without losing a row, in batches of `size`:

        rows = source.max_rank_rows  # of a ParquetSource: in no epoch has a rank more
        steps = EqualSteps(batches, mode="pad", num_items=[-(-rows // size)] * source.world_size)
        loader = ElasticLoader(steps, num_batches=steps.__len__)

    A rank's source that fails ends all ranks after the last step they all have: that rank with its error, the
    others with a RuntimeError naming it. The state holds every rank's position, so that rank 0's may be loaded by
    all: it needs no collective, and ConfigError tells of another number of ranks.
    """

    replays = True

    def __init__(
        self,
        source: BaseNode[T],
        *,
        mode: Mode = "drop",
        window: int = 8,
        pad: Callable[[T], T] = zero_weight,
        num_items: int | Sequence[int] | None = None,
        communicator: Communicator | None = None,
        join_s: float = _JOIN_S,
    ) -> None:
        super().__init__(source)
        if mode not in ("drop", "pad"):
            raise ConfigError(f"EqualSteps: mode={mode!r} is unknown. Use 'drop' or 'pad'.")
        if window < 1:
            raise ConfigError(f"EqualSteps: window={window} agrees on nothing. Set it to 1 or more.")
        if not callable(pad):
            raise ConfigError(f"EqualSteps: pad={pad!r} cannot be called. Pass a function from an item to its copy.")
        self._source, self._window, self._pad = source, window, pad
        self._mode: Mode = mode
        self._ranks: Communicator = GlooCommunicator() if communicator is None else communicator
        self._join_s = join_s
        self._num_items = _checked_counts(num_items)
        self._length: int | None = None
        self._pending: Window[T] | None = None

    def __len__(self) -> int:
        """Steps of every epoch, on every rank; TypeError without `num_items`. See there for who may call it."""
        if self._num_items is None:
            raise TypeError("this EqualSteps has no num_items, so the number of steps shows at the epoch's end only")
        if self._length is None:
            self._length = (min if self._mode == "drop" else max)(self._all_counts(self._num_items))
        return self._length

    def _all_counts(self, counts: int | Sequence[int]) -> Sequence[int]:
        world_size = self._ranks.world_size
        if isinstance(counts, int):
            if world_size == 1:
                return [counts]
            self._ranks.open()
            return self._ranks.gather(counts)
        if len(counts) != world_size:
            raise ConfigError(
                f"EqualSteps: num_items has {len(counts)} numbers for {world_size} ranks. Give one for each, or this "
                "rank's own alone."
            )
        return counts

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._abandon(must_end=True)
        state: State = initial_state or {"ranks": None, "skip": 0, "steps": 0, "length": None}
        self._alone = self._ranks.world_size == 1
        restart = self._own_part(state["ranks"])
        is_known = self._num_items is not None or state["length"] is not None
        pads = self._mode == "pad" and (is_known or not self._alone)
        self._share = RankShare(self._source, restart, self._pad if pads else None)
        self._skip: int = state["skip"]  # deliveries of a resumed window that were made before
        self._loaded = self._state = state
        self._items: list[T] = []
        self._begun: int = state["steps"]  # steps of this epoch before the present window
        self._total: int | None = state["length"]
        self._num_steps = self._place = self._num_windows = 0
        self._is_last = False
        self._failure: Exception | None = None

    def next(self) -> T:
        if self._alone:
            return self._next_alone()
        while True:
            while self._place == self._num_steps:
                if self._failure is not None:
                    raise self._failure
                if self._is_last:
                    raise StopIteration
                self._advance()
            place, self._place = self._place, self._place + 1
            if self._skip > 0:
                self._skip -= 1
                continue
            return self._items[place] if place < len(self._items) else self._share.padding()

    def get_state(self) -> State:
        if self._alone:
            if self._skip > 0:
                return self._loaded
            return {"ranks": [self._share.restart()], "skip": 0, "steps": self._begun, "length": self._total}
        if self._skip > 0 or self._num_windows == 0:
            return self._loaded
        return {**self._state, "skip": self._place}

    def shutdown(self) -> None:
        if self._pending is not None and self._failure is None:
            self._failure = StoppedError("EqualSteps was shut down. Call reset to start anew.")
        self._abandon(must_end=False)
        super().shutdown()

    def _own_part(self, ranks: Sequence[State] | None) -> State | None:
        if ranks is None:
            return None
        if len(ranks) != self._ranks.world_size:
            raise ConfigError(
                f"EqualSteps: this state was saved on {len(ranks)} ranks, and there are {self._ranks.world_size}: the "
                "ranks' shares of the data are others. Resume with as many ranks, or start the epoch anew."
            )
        return ranks[self._ranks.rank]

    def _next_alone(self) -> T:
        self._settle_length()
        while self._skip > 0:
            self._share.pull()
            self._skip -= 1
        if self._is_last and self._mode == "drop":
            raise StopIteration
        try:
            item = self._share.pull()
        except StopIteration:
            if self._is_last or self._total is None:
                raise
            if self._mode == "drop":
                raise RuntimeError(unkept(0, "has ended before its num_items")) from None
            item = self._share.padding()
        else:
            if self._is_last:
                raise RuntimeError(unkept(0, "has more items than its num_items"))
        self._begun += 1
        return item

    def _advance(self) -> None:
        """Make the window agreed on the present one, and let the next be agreed on meanwhile."""
        if self._num_windows == 0:
            self._ranks.open()
            self._settle_length()
            if self._is_last:
                return
        if self._pending is None:
            self._pending = self._begin_window()
        done = self._pending
        if not done.ahead.wait():
            return  # shut down meanwhile, as `_failure` says
        self._pending = None
        if done.ahead.failure is not None:
            self._failure = done.ahead.failure
            return
        self._decide(done)
        if not self._is_last:
            self._pending = self._begin_window()

    def _settle_length(self) -> None:
        """Before the first step: the number of steps of this epoch, if any; a resumed one keeps to its own."""
        if self._num_items is not None:
            length = len(self)
            self._total = length if self._total is None else self._total
        self._is_last = self._total is not None and self._begun >= self._total

    def _begin_window(self) -> Window[T]:
        # Small windows first: the first step need not wait for a whole one.
        size = min(self._window, 1 << min(self._num_windows, 30))
        left = self._left()
        if left is not None:  # where padding ends, one more shows whether the source keeps to its num_items
            size = min(size, left + (self._mode == "pad"))
        return Window(self._share, size, self._ranks)

    def _left(self) -> int | None:
        """Steps of the epoch behind those decided on; None where it shows at their end only."""
        return None if self._total is None else self._total - self._begun - self._num_steps

    def _decide(self, done: Window[T]) -> None:
        """From the reports, the same on all ranks: how many steps the window has, and whether it is the last."""
        found = verdict(done.reports, size=done.size, mode=self._mode, left=self._left())
        if found.failure is not None:
            self._failure = done.error or RuntimeError(found.failure)
        self._begun += self._num_steps
        self._items, self._num_steps, self._place = done.items, found.num_steps, 0
        self._is_last = found.is_last
        ranks = [report.restart for report in done.reports]
        self._state = {"ranks": ranks, "skip": 0, "steps": self._begun, "length": self._total}
        self._num_windows += 1

    def _abandon(self, *, must_end: bool) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.ahead.end(self.sources, self._join_s, must_end=must_end)

    def __getstate__(self) -> dict[str, Any]:
        # What runs, and the items held, are this object's own.
        mine = {"_share", "_items", "_failure", "_state", "_loaded"}
        kept = {name: value for name, value in super().__getstate__().items() if name not in mine}
        return {**kept, "_pending": None}


def _checked_counts(num_items: Any) -> int | list[int] | None:
    if num_items is None:
        return None
    counts: list[Any] = list(num_items) if isinstance(num_items, Sequence) else [num_items]
    if not counts or not all(isinstance(count, Integral) and int(count) >= 0 for count in counts):
        raise ConfigError(
            f"EqualSteps: num_items={num_items!r} is no number of items, nor a list of one for each rank. Give an int "
            "of 0 or more, such a list, or None where nothing is known."
        )
    return [int(count) for count in counts] if isinstance(num_items, Sequence) else int(counts[0])
