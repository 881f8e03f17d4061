"""What a stage is to do about items on which its function fails: a user's settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from lightning_intune.errors import ConfigError

_MAX_DOUBLINGS = 60


@final
@dataclass(frozen=True, kw_only=True)
class OnError:
    """An item on which the function raised is tried again `retries` times, then left out (`skip`) or raised.

    Concerns what the function raises, a result that cannot leave its process, an item that has ended three worker
    processes (skipped, not retried) and, in processes and actors with `timeout_s`, one that hangs. Never a
    `ConfigError`, Ctrl-C, or what the source raises: that is the policy of the stage it comes from.

    >>> OnError(retries=2, backoff_s=1.0).delay_s(1, chance=1.0)
    2.0
    """

    retries: int = 0
    backoff_s: float = 0.1
    """Wait before the first retry; doubled for each further one, less up to half of it by chance."""
    max_backoff_s: float = 30.0
    skip: bool = False
    """Leave the item out, count it, go on."""
    max_share: float = 0.01
    """Of the items of a pass, in [0, 1]: so many may be skipped; the next one is raised."""
    min_items: int = 1000
    """The share is reckoned over at least so many items, or an early one would always be too many."""
    quarantine: str | os.PathLike[str] | None = None
    """A file to which each skipped item adds a line of JSON: stage, item, what it was, error. None: no file."""
    errors: tuple[type[Exception], ...] = (Exception,)
    """The policy is for these; others are raised."""

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ConfigError(f"on_error: retries={self.retries} is no number of tries. Set it to 0 or more.")
        if not 0 <= self.backoff_s <= self.max_backoff_s:
            raise ConfigError(
                f"on_error: backoff_s={self.backoff_s} is outside [0, max_backoff_s={self.max_backoff_s}]. Set seconds "
                "within that."
            )
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"on_error: max_share={self.max_share} is no share. Set a number in [0, 1].")
        if self.min_items < 1:
            raise ConfigError(f"on_error: min_items={self.min_items} is no number of items. Set it to 1 or more.")
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in self.errors):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise ConfigError(f"on_error: errors={self.errors!r} are not all classes of exceptions. Pass those.")
        if self.quarantine is not None and not self.skip:
            raise ConfigError("on_error: a quarantine file lists what was skipped, and skip is False. Set skip=True.")
        if self.quarantine is not None:
            _check_file(Path(self.quarantine))

    @property
    def is_raise(self) -> bool:
        """Whether there is nothing to do but to raise."""
        return self.retries == 0 and not self.skip

    def delay_s(self, num_retries: int, *, chance: float) -> float:
        """Seconds to wait before another retry when there were `num_retries`; `chance` is drawn from [0, 1).

        Half of it is fixed and half is drawn, so that workers which failed together do not come back together. Source:
        M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog (2015), "equal jitter".
        """
        whole_s = min(self.max_backoff_s, self.backoff_s * 2 ** min(num_retries, _MAX_DOUBLINGS))
        return whole_s * (0.5 + 0.5 * chance)

    def allows(self, num_skipped: int, num_items: int) -> bool:
        """Whether so many of so many items may be left out.

        >>> policy = OnError(skip=True, max_share=0.1, min_items=20)
        >>> policy.allows(2, 5), policy.allows(3, 5), policy.allows(3, 30)
        (True, False, True)
        """
        return num_skipped <= self.max_share * max(num_items, self.min_items)


RAISE = OnError()


def skip(
    *,
    max_share: float = OnError.max_share,
    min_items: int = OnError.min_items,
    quarantine: str | os.PathLike[str] | None = None,
    errors: tuple[type[Exception], ...] = (Exception,),
) -> OnError:
    """Leave out what fails, up to `max_share` of the items: `ElasticMapper(..., on_error=skip(max_share=0.001))`."""
    return OnError(skip=True, max_share=max_share, min_items=min_items, quarantine=quarantine, errors=errors)


def retry(retries: int, backoff_s: float = OnError.backoff_s, *, then: Literal["raise"] | OnError = "raise") -> OnError:
    """Try again what fails: `retry(3, backoff_s=0.5)`, and leave it out if that does not help: `then=skip()`."""
    last = checked_policy("on_error", then)
    return replace(last, retries=retries, backoff_s=backoff_s, max_backoff_s=max(backoff_s, last.max_backoff_s))


def checked_policy(who: str, asked: object) -> OnError:
    """The policy that a user asked for, as an `OnError` or a word; ConfigError in the name of `who`."""
    if isinstance(asked, OnError):
        return asked
    if asked == "raise":
        return RAISE
    if asked == "skip":
        return skip()
    raise ConfigError(
        f"{who}: on_error={asked!r} is unknown. Use 'raise', 'skip', or skip(...), retry(...) or OnError(...) of "
        "lightning_intune.flow."
    )


def _check_file(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir() or path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(
            f"on_error: the quarantine file '{path}' cannot be written. Name a file in a folder that exists and may "
            "be written to."
        )
