"""Groups of features that share one `inverse`: their shapes, their stored rows, and what a user names them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.errors import ConfigError


@final
@dataclass(frozen=True, kw_only=True)
class GroupShape:
    """What the host knows of one group, so that no method waits for the device."""

    keys: tuple[str, ...]
    num_rows: int
    """U, the rows that are stored."""
    num_values: tuple[int, ...]
    """Values stored for each key."""
    has_inverse: bool = True
    """False: every row of the batch is stored, in order, and the group has no entry in `inverse`."""


@final
@dataclass(frozen=True, kw_only=True)
class UniqueRows:
    """One group: F keys over its U stored rows, and which of them each of the B rows is."""

    jagged: KeyedJagged
    """The stored rows, packed; their stride is U."""
    inverse: Tensor | None
    """[B] int64 in [0, U); None where the rows are stored as they come, U = B."""
    weights: Tensor | None = None
    """[N] per value of `jagged`."""


def checked_groups(keys: Sequence[str], groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """`groups` as tuples, and last, as one group, the keys in none. ConfigError for a name unknown or repeated."""
    named = [name for group in groups for name in group]
    for name in named:
        if isinstance(groups, str) or any(isinstance(group, str) for group in groups):
            raise ConfigError(f"dedup: groups={groups!r} holds a text. Give lists of names, as in [['{name}']].")
        if name not in keys:
            raise ConfigError(f"dedup: '{name}' is not among the keys {list(keys)}. Correct the name.")
        if named.count(name) > 1:
            raise ConfigError(f"dedup: '{name}' is in two groups, and its rows have one place. Name it once.")
    return [tuple(group) for group in groups if group]
