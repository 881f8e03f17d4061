"""Several sources as one: side by side, or drawn from by weight."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, TypeVar, final, get_args

import numpy as np

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lookahead import Lookahead
from lightning_intune.flow.node import BaseNode, Node, State, walk
from lightning_intune.flow.repeat import MAX_PASSES, reset_in_epoch
from lightning_intune.flow.seeded import checked_seed

T = TypeVar("T")

Stop = Literal["first_exhausted", "all_exhausted", "cycle", "cycle_until_all_exhausted"]

_DRAWS = 1024  # made together: seeding a generator costs as much as some hundred draws


@final
class Zip(Node[tuple[Any, ...]]):
    """Tuples of one item from each source, until the first source ends.

    With `strict` the sources must be of equal length: where one goes on after another has ended, `next` raises
    ValueError. Where one source fails, a state taken then resumes with the whole tuple.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> list(Zip(IterableSource("abc"), IterableSource(range(2))))
    [('a', 0), ('b', 1)]
    """

    def __init__(self, *sources: BaseNode[Any], strict: bool = False) -> None:
        super().__init__(*_checked_sources("Zip", sources))
        self._strict = strict
        self._aheads = [Lookahead(source) for source in sources]

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        states = [None] * len(self._aheads) if initial_state is None else initial_state["sources"]
        _check_count("Zip", states, len(self._aheads))
        for ahead, state in zip(self._aheads, states, strict=True):
            ahead.reset(state)

    def next(self) -> tuple[Any, ...]:
        items: list[Any] = []
        for place, ahead in enumerate(self._aheads):
            try:
                items.append(ahead.pull())
            except StopIteration:
                if self._strict:
                    self._check_all_end(place)
                raise
        for ahead in self._aheads:
            ahead.settle()
        return tuple(items)

    def _check_all_end(self, ended: int) -> None:
        """Source `ended` is the first that has no item left; those before it gave one more, those after may."""
        going_on = 0 if ended > 0 else next((i for i, a in enumerate(self._aheads[1:], 1) if _has_more(a)), None)
        if going_on is not None:
            raise ValueError(
                f"Zip: source {ended} has ended, and source {going_on} goes on. Give sources of equal length, or set "
                "strict=False to end with the shortest."
            )

    def get_state(self) -> State:
        return {"sources": [ahead.state() for ahead in self._aheads]}


@final
class Mix(Node[T]):
    """Items of several sources, each next one from a source drawn with probability in proportion to its weight.

    `stop` says what happens at a source's end:
    `first_exhausted` ends the epoch when a source that has ended is drawn; `all_exhausted` goes on with the others
    until none is left; `cycle` begins a source anew, for ever (put `Take` behind it); `cycle_until_all_exhausted`
    does so until every source has ended once. A source that begins anew is told a new epoch, as `Repeat` does.

    Draws are keyed by (seed, epoch, number of the draw). The state is that number, one flag and one count per source,
    and the sources' states.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> clicks, views = IterableSource("ccc"), IterableSource("vvvvvv")
    >>> "".join(Mix([clicks, views], weights=[1, 2], stop="all_exhausted", seed=3))
    'ccvvcvvvv'
    """

    def __init__(
        self,
        sources: Sequence[BaseNode[T]],
        weights: Sequence[float],
        *,
        stop: Stop = "all_exhausted",
        seed: int = 0,
    ) -> None:
        super().__init__(*_checked_sources("Mix", sources))
        if len(weights) != len(sources):
            raise ConfigError(f"Mix: {len(weights)} weights for {len(sources)} sources. Give one weight per source.")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(
                f"Mix: weights={list(weights)}; each must be a finite number above 0. Leave out a source."
            )
        if stop not in get_args(Stop):
            raise ConfigError(f"Mix: stop={stop!r} is unknown. Use one of {', '.join(map(repr, get_args(Stop)))}.")
        self._weights, self._stop = [float(weight) for weight in weights], stop
        self._cycles = stop.startswith("cycle")
        self._seed, self._next_epoch = checked_seed("Mix", seed), 0

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch  # the sources hear of it at the next reset: a pass may be going on

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        count = len(self._weights)
        state: State = initial_state or {
            "seed": self._seed,
            "epoch": self._next_epoch,
            "draw": 0,
            "passes": [0] * count,
            "ended": [False] * count,
            "sources": [None] * count,
        }
        _check_count("Mix", state["sources"], count)
        self._seed, self._epoch, self._draw = state["seed"], state["epoch"], state["draw"]
        self._passes, self._ended = list(state["passes"]), list(state["ended"])
        self._empty = [False] * count
        self._drawn: tuple[int, list[float]] = (-1, [])
        self._weigh()
        for index, source_state in enumerate(state["sources"]):
            self._begin_pass(index, source_state)

    def next(self) -> T:
        while self._bounds[-1] > 0:
            index = self._choose()
            try:
                item = next(self.sources[index])
            except StopIteration:
                self._end(index)
            else:
                self._draw += 1
                self._empty[index] = False
                return item
        raise StopIteration

    def get_state(self) -> State:
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "draw": self._draw,
            "passes": list(self._passes),
            "ended": list(self._ended),
            "sources": [source.state_dict() for source in self.sources],
        }

    def _choose(self) -> int:
        block, place = divmod(self._draw, _DRAWS)
        if self._drawn[0] != block:
            rng = np.random.Generator(np.random.PCG64([self._seed, self._epoch, block]))
            self._drawn = (block, rng.random(_DRAWS).tolist())
        index = bisect_right(self._bounds, self._drawn[1][place] * self._bounds[-1])
        # A product that is rounded up to the last bound itself belongs to the last source that has a share.
        return min(index, bisect_right(self._bounds, math.nextafter(self._bounds[-1], 0)))

    def _weigh(self) -> None:
        gone = self._ended if self._stop == "all_exhausted" else [False] * len(self._ended)
        self._bounds = list(accumulate(0.0 if out else w for w, out in zip(self._weights, gone, strict=True)))

    def _end(self, index: int) -> None:
        """Source `index` was drawn and has no item left: StopIteration if that ends the epoch."""
        self._ended[index] = True
        if self._stop == "first_exhausted" or (self._stop == "cycle_until_all_exhausted" and all(self._ended)):
            raise StopIteration
        if not self._cycles:
            self._draw += 1
            self._weigh()
            return
        if self._empty[index]:
            raise RuntimeError(
                f"Mix: source {index} gave no item in a whole pass, and beginning it anew would never give one. "
                "See why it is empty, or leave it out."
            )
        self._passes[index] += 1
        self._begin_pass(index, None)

    def _begin_pass(self, index: int, state: State | None) -> None:
        self._empty[index] = state is None
        epoch = self._epoch * MAX_PASSES + self._passes[index] if self._cycles else self._epoch
        reset_in_epoch(self.sources[index], epoch, state)


def _has_more(ahead: Lookahead[Any]) -> bool:
    try:
        ahead.pull()
    except StopIteration:
        return False
    return True


def _check_count(what: str, states: Sequence[State | None], count: int) -> None:
    if len(states) != count:
        raise ConfigError(
            f"{what}: this state is of {len(states)} sources, and here are {count}. Build the same graph, or start "
            "without the state."
        )


def _checked_sources(what: str, sources: Sequence[BaseNode[Any]]) -> Sequence[BaseNode[Any]]:
    if not sources:
        raise ConfigError(f"{what}: it has no source. Give it at least one node.")
    seen: set[int] = set()
    for place, source in enumerate(sources):
        if not isinstance(source, BaseNode):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise ConfigError(
                f"{what}: source {place} ({type(source).__name__}) is not a node. Wrap an iterable in "
                "lightning_intune.flow.IterableSource."
            )
        upstream = {id(node) for node in walk(source)}
        if seen & upstream:
            raise ConfigError(
                f"{what}: source {place} shares a node with a source before it, and each item goes to one of them "
                "only. Build a node for each."
            )
        seen |= upstream
    return sources
