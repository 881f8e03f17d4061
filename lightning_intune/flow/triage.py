"""What becomes of the items of one pass on which the function failed: tried again, left out, or raised."""

from __future__ import annotations

import json
import os
import random
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_intune.errors import ConfigError, StageError, stage_error
from lightning_intune.flow.lanes.lane import Failed, LaneDiedError
from lightning_intune.flow.node import State
from lightning_intune.flow.on_error import OnError

_MAX_CHARS = 1000  # of an item's or an error's text in the quarantine file
_SEGMENT = 64  # numbers of skipped items in one link of the chain that states hold


@final
@dataclass(frozen=True)
class Skipped:
    """Stands in its item's place until the consumer comes to it, who counts it and goes on."""

    number: int
    error: BaseException | None
    """None: it was skipped before the state was saved that this pass resumed from."""
    what: str = ""


@final
class Triage:
    """Carries out one stage's `OnError` over one pass.

    `treat` is the workers', outside every lock; all else is called under the run's lock. Items are counted where the
    consumer comes to them, so that order decides which one is too many, and not which worker was quicker.

    A node behind the stage may resume from an older state of it and pull again what came since. It must then get the
    very same items. So a state is told, while somebody holds it, what is skipped later ("skips") and how far the
    stage has come ("until"): a resumed pass skips the former unseen, and raises rather than skips before the latter.
    """

    def __init__(self, policy: OnError, stage: str, state: State | None, *, in_order: bool, low: int) -> None:
        self._policy, self._stage = policy, stage
        self._rng = random.Random()  # of waits only: the user's generators are left alone
        read = {} if state is None else state
        self._num_skipped = int(read.get("skipped", 0))
        self.known: set[int] = {number for number in _chained(read.get("skips", [[], []])) if number >= low}
        """Numbers of items that an earlier pass has skipped, and that are to come."""
        self._came_out_below = read["until"][0] if "until" in read else 0
        self.remembers = in_order and (policy.skip or bool(self.known) or self._num_skipped > 0)
        """Whether states are told what comes later."""
        self._segment: list[Any] = [[], []]
        self._until = [max(low, self._came_out_below)]
        self._written = _lines(policy.quarantine) if state is not None and policy.quarantine is not None else set()

    @property
    def is_active(self) -> bool:
        """Whether failures are anything but raised."""
        return not self._policy.is_raise

    # ---- the workers ----

    def treat(
        self, number: int, item: Any, outcome: Any, again: Callable[[], Any], wait: Callable[[float], bool]
    ) -> Any:
        """The outcome of an item after what retries there are: a result, a `Skipped`, or a `Failed`.

        `again` makes another try; `wait` waits for seconds, and is False when the run is closing.
        """
        num_retries = 0
        while type(outcome) is Failed and self.is_for(outcome.error):
            is_last = num_retries == self._policy.retries or isinstance(outcome.error, LaneDiedError)
            if is_last:
                # What had come out before the state was saved cannot be left out now.
                if self._policy.skip and number >= self._came_out_below and wait(0.0):
                    outcome = Skipped(number, outcome.error, _shown(item))
                break
            if not wait(self._policy.delay_s(num_retries, chance=self._rng.random())):
                break
            num_retries += 1
            outcome = again()
        try:
            return outcome
        finally:
            del outcome  # the error of a retry leads to this frame (see `run`)

    def is_for(self, error: BaseException) -> bool:
        """Whether the policy has a say in this error."""
        is_ours = isinstance(error, self._policy.errors) and not isinstance(error, ConfigError)
        return is_ours and not self._policy.is_raise

    # ---- under the run's lock ----

    def failure(self, number: int, error: BaseException) -> StageError:
        """The error to raise in an item's place."""
        if self._policy.skip and number < self._came_out_below and self.is_for(error):
            return stage_error(
                self._stage, number, error, "It came out before this state was saved, so it cannot be skipped now: "
                "what follows it would shift. Mend its cause, or start the epoch anew."
            )  # fmt: skip
        tries = self._policy.retries
        return stage_error(self._stage, number, error, f"{tries} retries did not help." if tries else "")

    def leave_out(self, skipped: Skipped, num_items: int) -> None:
        """Count an item that the consumer has come to, the last of `num_items`. StageError if it is one too many."""
        number, count = skipped.number, self._num_skipped + 1
        if skipped.error is not None:
            if not self._policy.allows(count, num_items):
                raise stage_error(self._stage, number, skipped.error, self._too_many(count, num_items))
            self._write(skipped)
        self.known.discard(number)
        self._num_skipped = count
        numbers, later = self._segment
        numbers.append(number)
        if len(numbers) == _SEGMENT:
            self._segment = [[], []]
            later.append(self._segment)

    def came_out(self, low: int) -> None:
        """Everything below `low` is delivered or left out."""
        self._until[0] = max(self._until[0], low)

    def state(self) -> State:
        """What the stage's state holds of this; parts of it go on changing while it is held."""
        if not self.remembers:
            return {"skipped": self._num_skipped} if self._num_skipped else {}
        skips = [sorted(self.known), [self._segment]] if self.known else self._segment
        return {"skipped": self._num_skipped, "skips": skips, "until": self._until}

    def _too_many(self, count: int, num_items: int) -> str:
        policy = self._policy
        return (
            f"It would be the {_nth(count)} of {num_items} items to be skipped, and max_share={policy.max_share:g} "
            f"(of {policy.min_items} items or more) allows fewer. Mend the cause, or allow more."
        )

    def _write(self, skipped: Skipped) -> None:
        if self._policy.quarantine is None:
            return
        error = skipped.error
        line = json.dumps(
            {
                "stage": self._stage,
                "item": skipped.number,
                "what": skipped.what,
                "error": type(error).__name__,
                "text": _shown(error, str),
            }
        )
        if line in self._written:  # by the run that this one resumes
            self._written.discard(line)
            return
        path = Path(self._policy.quarantine)
        try:
            _append(path, line)
        except OSError as failure:
            hint = f"Its line for the quarantine file '{path}' could not be written. Make room there, or leave it out."
            raise stage_error(self._stage, skipped.number, failure, hint) from failure


def _append(path: Path, line: str) -> None:
    # One write: several ranks may share the file, and whole lines then follow each other.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        data = line.encode() + b"\n"
        if os.write(fd, data) < len(data):
            raise OSError(28, "No space left on device")
    finally:
        os.close(fd)


def _lines(path: str | os.PathLike[str]) -> set[str]:
    try:
        return set(Path(path).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return set()


def _chained(segment: list[Any]) -> list[int]:
    """Numbers in a chain of links [numbers, [next link]]: earlier ones too, which do no harm."""
    found: list[int] = []
    while segment:
        numbers, later = segment
        found += numbers
        segment = later[0] if later else []
    return found


_BRIEF = reprlib.Repr()  # of a list of a million its first few; of what is no container, a description
_BRIEF.maxother = _BRIEF.maxstring = 400


def _shown(value: Any, how: Callable[[Any], str] = _BRIEF.repr) -> str:
    try:
        text = how(value)
    except Exception as error:  # noqa: BLE001 - a user's `__repr__`
        text = f"{type(value).__name__} (its text cannot be had: {type(error).__name__})"
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."


def _nth(count: int) -> str:
    return f"{count}{'th' if 10 <= count % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(count % 10, 'th')}"
