"""What one trial of a scenario has shown: items in and out, what was injected, which errors came, what was left."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from lightning_intune.errors import StageError


class HungError(BaseException):
    """A trial took longer than it may. No Exception: no scenario catches it by accident."""


@final
@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of one trial, or summed over several."""

    num_injected: int = 0
    num_in: int = 0
    num_once: int = 0
    """Items that were to come out, and did, exactly once."""
    num_errors: int = 0
    """Errors that were to come."""
    num_named: int = 0
    """Those that came, with stage and item in their text where a stage is at fault."""
    num_leaks: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one trial has shown; `broken` says in words which promises were."""

    scenario: str
    seed: int
    counts: Counts
    broken: tuple[str, ...]


@final
class Trial:
    """One trial: what a scenario draws from, and where it tells what happened."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder, self.rng = seed, folder, random.Random(seed)
        self.num_injected = self.num_in = self.num_once = self.num_errors = self.num_named = 0
        self.broken: list[str] = []

    def inject(self, count: int = 1) -> None:
        """A fault was put in."""
        self.num_injected += count

    def check(self, holds: bool, otherwise: str) -> None:
        """A promise of its own."""
        if not holds:
            self.broken.append(otherwise)

    def came(self, wanted: Sequence[Any], out: Iterable[Any], *, in_order: bool = True) -> None:
        """What came out, to be `wanted`: each once, and in that order."""
        got = list(out)
        expected, counted = Counter(wanted), Counter(got)
        self.num_in += len(wanted)
        self.num_once += sum(counted[item] == count for item, count in expected.items())
        lost = [item for item in expected if counted[item] < expected[item]]
        repeated = [item for item in counted if item in expected and counted[item] > expected[item]]
        strange = [item for item in counted if item not in expected]
        for what, items in (("lost", lost), ("repeated", repeated), ("strange", strange)):
            if items:
                self.broken.append(f"{what}: {len(items)} items, such as {str(items[0])[:80]}")
        if in_order and not (lost or repeated or strange) and got != list(wanted):
            self.broken.append("reordered")

    @contextmanager
    def raises(
        self, kind: type[BaseException] | tuple[type[BaseException], ...], *words: str, item: int | None = None
    ) -> Iterator[None]:
        """The block must raise that, with these words; `item` also asks for a StageError of that item."""
        self.num_errors += 1
        wanted = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        try:
            yield
        except kind as error:
            text = str(error)
            missing = [word for word in words if word not in text]
            is_named = item is None or (isinstance(error, StageError) and error.item == item)
            if missing or not is_named:
                self.broken.append(f"wrong words: {text[:200]!r} lacks {missing or f'item {item}'}")
            else:
                self.num_named += 1
        except HungError:
            raise
        except BaseException as error:  # noqa: BLE001 - it is what the trial shows
            self.broken.append(f"another error: {type(error).__name__}: {str(error)[:200]}, not {wanted}")
        else:
            self.broken.append(f"swallowed: no {wanted} came")

    def outcome(self, scenario: str, leaks: Sequence[str]) -> Outcome:
        """The counts."""
        counts = Counts(
            num_injected=self.num_injected,
            num_in=self.num_in,
            num_once=self.num_once,
            num_errors=self.num_errors,
            num_named=self.num_named,
            num_leaks=len(leaks),
        )
        return Outcome(scenario=scenario, seed=self.seed, counts=counts, broken=(*self.broken, *leaks))
