"""Which features are worth deduplicating, and which of them together: RecD's model, and the choice by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from lightning_intune.errors import ConfigError

Changes = npt.NDArray[np.bool_]

LENGTH_BYTES = 4
INVERSE_BYTES = 8


def dedup_factor(samples_per_session: float, stay_share: float) -> float:
    """How many times fewer values a feature has once its repeats in a session are stored once.

    `samples_per_session` S is 1 or more, in rows; `stay_share` d in [0, 1] is the chance that the next row of the
    session has the same value. factor = l·B / DedupeLen, DedupeLen = l·B·(1 + (S - 1)(1 - d)) / S; the mean length l
    and the batch size B cancel. Source: RecD (arXiv 2211.05239). ValueError outside these ranges.

    >>> dedup_factor(16, 1.0), dedup_factor(1, 0.5), round(dedup_factor(17, 0.9), 2)
    (16.0, 1.0, 6.54)
    """
    if not samples_per_session >= 1 or not 0 <= stay_share <= 1:
        raise ValueError(
            f"dedup_factor: samples_per_session={samples_per_session} must be 1 or more, and stay_share={stay_share} "
            "in [0, 1]"
        )
    return samples_per_session / (1 + (samples_per_session - 1) * (1 - stay_share))


def expected_speedup(factor: float, share: float) -> float:
    """What a whole takes less when `share` of it, in [0, 1], is done `factor` times less often (Amdahl).

    >>> expected_speedup(4.0, 0.5)
    1.6
    """
    return 1 / (1 - share + share / factor)


@final
@dataclass(frozen=True, kw_only=True)
class FeatureStats:
    """What was measured of one feature, over rows that stand in session order."""

    name: str
    mean_length: float
    """Values per row, 0 or more."""
    value_bytes: int
    """Bytes of one value."""
    samples_per_session: float
    """Mean rows per session, 1 or more."""
    stay_share: float
    """Share of rows, of those with a predecessor in their session, whose value is the predecessor's."""
    shift_share: float = 0.0
    """Share of those rows whose list is the predecessor's moved on by some values, and not the same."""
    new_values: float = 0.0
    """Values that such a shifted row adds, in the mean; those of its list that the predecessor's did not have."""

    @property
    def factor(self) -> float:
        """By the model: how many times fewer values after deduplication of whole rows."""
        return dedup_factor(self.samples_per_session, self.stay_share)

    @property
    def partial_factor(self) -> float:
        """The same where shifted lists share a buffer, each adding its new values only."""
        if self.mean_length == 0:
            return self.factor
        added = max(0.0, 1 - self.stay_share - self.shift_share)
        added += self.shift_share * min(1.0, self.new_values / self.mean_length)
        return dedup_factor(self.samples_per_session, 1 - added)

    @property
    def row_bytes(self) -> float:
        """Bytes of one row's values and its length."""
        return self.mean_length * self.value_bytes + LENGTH_BYTES

    @property
    def saved_bytes_per_row(self) -> float:
        """Of `row_bytes`, those that deduplication spares, less the row's entry in `inverse`; may be negative."""
        return self.row_bytes * (1 - 1 / self.factor) - INVERSE_BYTES


@final
@dataclass(frozen=True, kw_only=True)
class FeatureGroup:
    """Features that share one `inverse`: a row is stored again when any of them changes."""

    features: tuple[str, ...]
    factor: float
    """Expected rows per stored row."""
    saved_bytes_per_row: float
    """Expected bytes spared per row of the batch, the `inverse` paid for."""


@final
@dataclass(frozen=True, kw_only=True)
class DedupPlan:
    """The groups to deduplicate; features in no group stay as they are.

    >>> plan = DedupPlan.of(["user", "history"], ["query"])
    >>> plan.features
    ('user', 'history', 'query')
    """

    groups: tuple[FeatureGroup, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        names = self.features
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None or any(not group.features for group in self.groups):
            what = "a group has no feature" if repeated is None else f"feature '{repeated}' is named twice"
            raise ConfigError(
                f"DedupPlan: {what}, so no row has one place. Give each feature one group, and each group a feature."
            )

    @staticmethod
    def of(*groups: Sequence[str]) -> DedupPlan:
        """A plan by hand: one sequence of feature names for each group. ConfigError for a name in two of them."""
        for group in groups:
            if isinstance(group, str):
                raise ConfigError(f"DedupPlan: the group '{group}' is a text. Give a list, as in ['{group}'].")
        return DedupPlan(
            groups=tuple(
                FeatureGroup(features=tuple(group), factor=math.nan, saved_bytes_per_row=math.nan) for group in groups
            )
        )

    @staticmethod
    def choose(stats: Sequence[FeatureStats], changes: Changes | None = None, *, min_factor: float = 1.5) -> DedupPlan:
        """The groups that spare most bytes by the model, of features whose factor reaches `min_factor`.

        `changes` [features, rows] says of each row whether it differs from its predecessor *in its session* (rows that
        have none left out); features are joined in one group where the `inverse` that this spares outweighs the rows
        that are then stored for another's sake. Without it every feature is a group of its own. Below `min_factor`
        finding the duplicates costs more than they do.
        """
        if min_factor < 1:
            raise ConfigError(f"DedupPlan: min_factor={min_factor} would take what only costs. Set it to 1 or more.")
        worth = [i for i, one in enumerate(stats) if one.factor >= min_factor and one.saved_bytes_per_row > 0]
        worth.sort(key=lambda i: -stats[i].stay_share)
        open_groups: list[_Growing] = []
        for i in worth:
            alone = _Growing([stats[i]], None if changes is None else changes[i])
            best = max(open_groups, key=lambda group: group.gain_by(alone), default=None)
            if best is not None and best.gain_by(alone) >= 0:
                best.take(alone)
            else:
                open_groups.append(alone)
        order = {one.name: i for i, one in enumerate(stats)}
        groups = sorted((group.done(order) for group in open_groups), key=lambda group: order[group.features[0]])
        return DedupPlan(groups=tuple(groups))

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are deduplicated, group by group."""
        return tuple(name for group in self.groups for name in group.features)

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The features of each group."""
        return tuple(group.features for group in self.groups)


@final
class _Growing:
    """A group while features are being added to it."""

    def __init__(self, stats: list[FeatureStats], changes: Changes | None) -> None:
        self._stats, self._changes = stats, changes

    def factor(self) -> float:
        if self._changes is None or len(self._stats) == 1 or not len(self._changes):
            return self._stats[0].factor
        return dedup_factor(self._stats[0].samples_per_session, 1 - float(self._changes.mean()))

    def saved(self) -> float:
        """Bytes per row, the `inverse` paid for."""
        return sum(one.row_bytes for one in self._stats) * (1 - 1 / self.factor()) - INVERSE_BYTES

    def gain_by(self, other: _Growing) -> float:
        """Bytes per row that joining the two spares; 0 or more where it is worth it."""
        return self._with(other).saved() - self.saved() - other.saved() if self._changes is not None else -1.0

    def take(self, other: _Growing) -> None:
        joined = self._with(other)
        self._stats, self._changes = joined._stats, joined._changes  # one class: its own other object

    def _with(self, other: _Growing) -> _Growing:
        changes = None if self._changes is None or other._changes is None else self._changes | other._changes
        return _Growing(self._stats + other._stats, changes)

    def done(self, order: dict[str, int]) -> FeatureGroup:
        names = sorted((one.name for one in self._stats), key=order.__getitem__)
        return FeatureGroup(features=tuple(names), factor=self.factor(), saved_bytes_per_row=self.saved())
