"""How many samples an epoch was said to have, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, final

from lightning_intune.balance.channel import Channel
from lightning_intune.errors import ConfigError


@final
class Promised:
    """What is known beforehand of an epoch: this rank's samples, or every rank's. The consumer's thread only."""

    def __init__(self, num_samples: Any, channel: Channel) -> None:
        self._own, self._all = _checked(num_samples)
        self._channel = channel

    @property
    def is_given(self) -> bool:
        """Whether anything was said."""
        return self._own is not None or self._all is not None

    def by_rank(self) -> Sequence[int]:
        """Every rank's samples. Where each rank knows its own only they tell each other now, once.

        TypeError where nothing was said, ConfigError where there are not as many numbers as ranks.
        """
        if self._all is None:
            if self._own is None:
                raise TypeError(
                    "this BalancedExchange has no num_samples, so the number of steps shows at the epoch's end only"
                )
            if self._channel.world_size == 1:
                return [self._own]
            self._channel.open()
            self._all = self._channel.gather(self._own)
        if len(self._all) != self._channel.world_size:
            raise ConfigError(
                f"BalancedExchange: num_samples has {len(self._all)} numbers for {self._channel.world_size} ranks. "
                "Give one for each, or this rank's own alone."
            )
        return self._all

    def broken(self, num_steps: int, length: int) -> RuntimeError:
        """The error for an epoch of another length, the same on every rank."""
        return RuntimeError(
            f"BalancedExchange: the epoch had {num_steps} steps, and its num_samples had promised {length}: a source "
            "gave more or fewer samples than was said. Correct num_samples, or leave it out."
        )


def _checked(num_samples: Any) -> tuple[int | None, list[int] | None]:
    if num_samples is None:
        return None, None
    counts: list[Any] = list(num_samples) if isinstance(num_samples, Sequence) else [num_samples]
    if not counts or not all(isinstance(count, Integral) and int(count) >= 0 for count in counts):
        raise ConfigError(
            f"BalancedExchange: num_samples={num_samples!r} is no number of samples, nor a list of one for each rank. "
            "Give an int of 0 or more, such a list, or None where nothing is known."
        )
    if isinstance(num_samples, Sequence):
        return None, [int(count) for count in counts]
    return int(counts[0]), None
