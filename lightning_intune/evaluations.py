"""Validation, test and prediction: which of their loaders runs, while all others stand still."""

from __future__ import annotations

from typing import Any, final

from lightning_intune.control import Decision
from lightning_intune.tuned_loaders import TunedLoaders


@final
class Evaluations:
    """Between `begin` and `end` one loader is at work, in the order in which Lightning numbers them.

    Turns are told by `advance`, and those not logged yet by `end`: a validation's scalars stand at its end, as
    Lightning's do. The training thread's.
    """

    def __init__(self, tuned: TunedLoaders) -> None:
        self._tuned = tuned
        self._places: dict[str, list[str | None]] = {}  # a split's loaders, in order; None: not elastic
        self._running: str | None = None
        self._unlogged: dict[str, Decision] = {}

    def begin(self, split: str, loaders: Any) -> None:
        """A split's evaluation starts with the first of `loaders`."""
        self._places[split] = self._tuned.watch(split, loaders)
        self._run_only(next(iter(self._places[split]), None))

    def advance(self, split: str, place: int) -> tuple[str, Decision] | None:
        """A batch of loader number `place` was used; its name and decision where that ended a turn."""
        places = self._places.get(split, [])
        name = places[place] if place < len(places) else None
        if name != self._running:
            self._run_only(name)
        decision = None if name is None else self._tuned[name].step()
        if decision is None or name is None:
            return None
        self._unlogged[name] = decision
        return name, decision

    def end(self) -> dict[str, Decision]:
        """The evaluation is over; the last turn of each loader that had one, by name."""
        self._run_only(None)
        turns, self._unlogged = self._unlogged, {}
        return turns

    def _run_only(self, name: str | None) -> None:
        if self._running is not None:
            self._tuned[self._running].pause()
        self._running = name
        if name is not None:
            self._tuned[name].resume()
