"""What made-up session data shall look like: lengths, features, labels, all from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from lightning_intune.errors import ConfigError

Order = Literal["session", "time", "shuffled"]
Layout = Literal["rows", "sessions"]

OTTO_MEAN_EVENTS = 16.80
# Events per session of the OTTO data (12.9 M sessions; its README gives mean 16.80, sd 33.58, p50 6, p75 15, p90 39,
# p95 68, max 500). Between those the logarithm is interpolated; p25, p99 and p99.9 were fitted to mean and sd.
_OTTO_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
_OTTO_EVENTS = (1.5, 2.0, 6.0, 15.0, 39.0, 68.0, 145.0, 350.0, 500.0)
_RESERVED = ("session", "ts", "label", "probability")


@final
@dataclass(frozen=True, kw_only=True)
class SynthFeature:
    """One column of ids, and how it behaves from one event of a session to the next.

    >>> SynthFeature(name="history", change=0.1, mean_length=50, shift=2).is_list
    True
    """

    name: str
    change: float
    """Chance that an event's value is not the previous event's, 0 to 1: 0 stays all session, 1 is new every time."""
    mean_length: float = 0.0
    """0: one id. Else a list of this many ids on average, at least one."""
    shift: int = 0
    """For lists. 0: a changed list is drawn anew; n: it loses its n oldest ids and gains n new ones."""
    num_ids: int = 10_000
    """Ids are 0 to `num_ids - 1`."""
    skew: float = 3.0
    """1: all ids alike often; higher: id i is drawn like i ** (1/skew - 1), small ids most."""
    weight: float = 1.0
    """What its ids count for in the label, beside the other features'."""

    def __post_init__(self) -> None:
        what = f"synth feature '{self.name}'"
        if not 0.0 <= self.change <= 1.0:
            raise ConfigError(f"{what}: change={self.change} is no chance. Set it between 0 and 1.")
        if self.mean_length != 0.0 and self.mean_length < 1.0:
            raise ConfigError(f"{what}: mean_length={self.mean_length} makes empty lists. Set it to 0 or 1 and more.")
        if self.shift < 0 or (self.shift and not self.is_list):
            raise ConfigError(f"{what}: shift={self.shift} needs a list (mean_length of 1 or more) and no minus sign.")
        if self.num_ids < 1 or self.skew < 1.0:
            raise ConfigError(f"{what}: num_ids={self.num_ids}, skew={self.skew}; both have to be 1 or more.")
        if not self.name or self.name in _RESERVED:
            raise ConfigError(f"{what}: the name is empty or one of {', '.join(_RESERVED)}. Choose another.")

    @property
    def is_list(self) -> bool:
        """Whether its rows hold several ids."""
        return self.mean_length > 0.0


def default_features(
    *,
    num_user: int = 4,
    num_sequences: int = 2,
    num_item: int = 2,
    change: float = 0.02,
    sequence_change: float = 0.1,
    sequence_length: float = 20.0,
    shift: int = 1,
    num_ids: int = 10_000,
) -> tuple[SynthFeature, ...]:
    """Features as session logs have them: `user0..` nearly constant, `history0..` lists that shift, `item0..` new."""
    user = [SynthFeature(name=f"user{i}", change=change, num_ids=num_ids) for i in range(num_user)]
    history = [
        SynthFeature(
            name=f"history{i}", change=sequence_change, mean_length=sequence_length, shift=shift, num_ids=num_ids
        )
        for i in range(num_sequences)
    ]
    item = [SynthFeature(name=f"item{i}", change=1.0, num_ids=num_ids) for i in range(num_item)]
    return (*user, *history, *item)


@final
@dataclass(frozen=True, kw_only=True)
class SynthSpec:
    """Made-up session data; equal specs make equal data, on any machine.

    Columns: `session` int64, `ts` timestamp[ms], the features (int64, or lists of int64), `dense0..` float32, `label`
    int8, and with `with_truth` the `probability` (float32) that the label is 1. The label is a coin with
    logit = bias + strength * sum of per-id weights: `probability` has the best AUC any model can have.
    """

    num_rows: int = 100_000
    seed: int = 0
    events_per_session: float | None = None
    """None: OTTO's distribution (mean 16.80); m: OTTO's shape stretched to mean m, 1 to 250 (1: all have one event)."""
    features: Sequence[SynthFeature] = field(default_factory=default_features)
    num_dense: int = 2
    """Columns of numbers, new in every event, with a part in the label."""
    label_bias: float = -1.5
    label_strength: float = 2.0
    with_truth: bool = False
    order: Order = "session"
    """`session`: clustered as drawn; `time`: as a log has it; `shuffled`: all rows evenly at random."""
    num_days: int = 28

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.num_rows < 1 or self.num_days < 1 or self.num_dense < 0 or self.seed < 0:
            raise ConfigError(
                f"synth: num_rows={self.num_rows}, num_days={self.num_days}, num_dense={self.num_dense}, "
                f"seed={self.seed}; the first two have to be 1 or more, the others not below 0."
            )
        if self.events_per_session is not None and not 1.0 <= self.events_per_session <= 250.0:
            raise ConfigError(
                f"synth: events_per_session={self.events_per_session} is outside 1 to 250. Set a mean in that range."
            )
        names = [feature.name for feature in self.features]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"synth: two features are named '{twice[0]}'. Give each its own name.")
        if self.order not in ("session", "time", "shuffled"):
            raise ConfigError(f"synth: order='{self.order}' is unknown. Set session, time or shuffled.")

    def session_lengths(self, num: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """[num] events per session."""
        drawn = np.exp(np.interp(rng.random(num), _OTTO_SHARES, np.log(_OTTO_EVENTS)))
        if self.events_per_session is None:
            return np.clip(np.rint(drawn), 2, 500).astype(np.int64)
        stretched = 1.0 + (np.maximum(drawn, 1.0) - 1.0) * (self.events_per_session - 1.0) / (_drawn_mean() - 1.0)
        return np.floor(stretched + rng.random(num)).astype(np.int64)  # rounded by chance: the mean is kept


def _drawn_mean() -> float:
    """Mean of the interpolated curve: over a piece from a to b it is (b - a) / log(b / a)."""
    shares, events = np.array(_OTTO_SHARES), np.array(_OTTO_EVENTS)
    return float(np.sum(np.diff(shares) * np.diff(events) / np.diff(np.log(events))))
