"""A seeded shuffle within a moving window, whose state holds no item."""

from __future__ import annotations

from typing import Any, TypeVar, final

import numpy as np

from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, State
from lightning_intune.flow.seeded import Seeded

T = TypeVar("T")


@final
class Shuffle(Seeded[T]):
    """The items of `source`, each run of `window` successive ones in an order drawn from (seed, epoch, run number).

    Every order of a run is equally likely; no item moves by `window` places or more; a window as large as the epoch
    shuffles it wholly. At most `window` items are held: while one run is handed out, the next is pulled, one for one,
    so that nobody waits for a whole run but the epoch's first.

    The state is (seed, epoch, run, place) and the source's state before the run, whatever the items' size; a resume
    pulls the run again. An exception of the source comes up to `window` items early, and costs none.
    Two shuffles in one graph should have two seeds.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> list(Shuffle(IterableSource(range(6)), window=3, seed=7))
    [0, 2, 1, 3, 5, 4]
    """

    replays = True

    def __init__(self, source: BaseNode[T], window: int, *, seed: int = 0) -> None:
        super().__init__(source, seed=seed)
        if window < 1:
            raise ConfigError(f"Shuffle: window={window} holds no item. Set it to 2 or more, or leave Shuffle out.")
        self._source, self.window = source, window

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        state = self._begin(initial_state, window=self.window, run=0, place=0, source=None)
        if state["window"] != self.window:
            raise ConfigError(
                f"Shuffle: this state is of window={state['window']}, and here it is {self.window}: its place would "
                "mean other items. Set the same window, or start the epoch anew."
            )
        self._source.reset(state["source"])
        # The run being handed out, its next item last; `_place` of its items are out already.
        self._run: list[T] = []
        self._place: int = state["place"]
        self._run_source: State = {}
        # The run after it, as far as it has been pulled.
        self._upcoming: list[T] = []
        self._upcoming_number: int = state["run"]
        self._upcoming_source = self._source.state_dict()
        self._ended = False

    def next(self) -> T:
        if not self._run:
            self._begin_run()
        self._pull_ahead(self._place + 1)
        item = self._run.pop()
        self._place = self._place + 1 if self._run else 0
        return item

    def get_state(self) -> State:
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "window": self.window,
            "run": self._upcoming_number - bool(self._run),
            "place": self._place,
            "source": self._run_source if self._run else self._upcoming_source,
        }

    def _begin_run(self) -> None:
        self._pull_ahead(self.window)
        items, place = self._upcoming, self._place
        if len(items) <= place:
            if place == 0:
                raise StopIteration
            raise RuntimeError(
                f"Shuffle: a run of more than {place} items was saved, and the source now has {len(items)} for it. "
                "Resume with the data that the state was saved on, or start the epoch anew."
            )
        rng = np.random.Generator(np.random.PCG64([self._seed, self._epoch, self._upcoming_number]))
        self._run = [items[i] for i in rng.permutation(len(items))[place:][::-1].tolist()]
        self._run_source = self._upcoming_source
        self._upcoming, self._upcoming_number = [], self._upcoming_number + 1
        self._upcoming_source = self._source.state_dict()

    def _pull_ahead(self, num_items: int) -> None:
        while len(self._upcoming) < num_items and not self._ended:
            try:
                self._upcoming.append(next(self._source))
            except StopIteration:
                self._ended = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_run": [], "_upcoming": []}
