"""What `lightning-intune cluster` writes into a Parquet footer: what the rows are, which columns are a session's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from lightning_intune.column_types import is_list, plain
from lightning_intune.errors import ConfigError

LAYOUT_KEY = b"lightning_intune.layout"
LEVEL_KEY = b"lightning_intune.session_level"
"""A JSON list of the columns that stay as they are; the others are lists, one value per row of the session."""


def has_sessions(about: Mapping[bytes, bytes]) -> bool:
    """Whether a file whose footer says this has a session in each row."""
    return about.get(LAYOUT_KEY) == b"sessions" and LEVEL_KEY in about


def session_level(about: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """The columns that a file of the session layout names as the session's, from its Parquet footer's metadata.

    ConfigError where the file has no such layout.
    """
    if about is None or not has_sessions(about):
        raise ConfigError(
            "session_level: the file's metadata does not say that its rows are sessions. Write it with "
            "`lightning-intune cluster IN OUT --layout sessions`, or name the columns yourself."
        )
    return tuple(json.loads(about[LEVEL_KEY]))


def impressions_of(table: pa.Schema, level: Sequence[str]) -> pa.Schema:
    """The columns of the impressions of such a table: lists of `level` stay, of others there is an entry each."""

    def entry(field: pa.Field) -> pa.Field:
        kind = plain(field.type)
        return field.with_type(kind.value_type) if field.name not in level and is_list(kind) else field

    return pa.schema([entry(field) for field in table])
