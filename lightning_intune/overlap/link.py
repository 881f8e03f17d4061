"""A slower link than there is, to measure on one machine what many would wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_intune.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class Link:
    """A slower link than there is, for measurements on one machine. Figures made with one must say so."""

    delay_s: float = 0.0
    """Of every exchange."""
    bytes_per_s: float = float("inf")
    """Of a rank, in each direction."""

    def __post_init__(self) -> None:
        if not (self.delay_s >= 0 and self.bytes_per_s > 0):
            raise ConfigError(
                f"Link: delay_s={self.delay_s} and bytes_per_s={self.bytes_per_s} describe no link. Give a delay of 0 "
                "or more, and more than 0 bytes per second."
            )

    def seconds(self, num_bytes: int) -> float:
        """What an exchange takes in which a rank sends, or gets, at most so many bytes."""
        return self.delay_s + num_bytes / self.bytes_per_s
