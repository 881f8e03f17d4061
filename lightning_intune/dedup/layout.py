"""What the rows of Parquet files are, as their footers tell: impressions, or whole sessions and how those are used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import pyarrow as pa

from lightning_intune.column_types import is_list, plain
from lightning_intune.config import Schema
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.sessions import SessionsToBatch
from lightning_intune.errors import ConfigError
from lightning_intune.flow.filesystems import Paths, locate
from lightning_intune.flow.parquet_files import find_files, read_footers

LAYOUT_KEY = b"lightning_intune.layout"
LEVEL_KEY = b"lightning_intune.session_level"
"""A JSON list of the columns that stay as they are; the others are lists, one value per row of the session."""

Groups = Sequence[Sequence[str]]


@final
class SessionLayout:
    """Files with one row per session, as `lightning-intune cluster --layout sessions` writes them.

    `level` names the columns with one value for the whole session; `groups` are features of the impressions that
    repeat together and are to be deduplicated. ConfigError where every column of `schema` is the session's.

    >>> from lightning_intune.config import SparseFeature
    >>> features = [SparseFeature(name=name, num_embeddings=80, transform="id") for name in ("user", "item")]
    >>> layout = SessionLayout(Schema(sparse=features, labels=["click"]), ["user"])
    >>> layout.level, layout.counted
    (('user',), 'click')
    """

    def __init__(self, schema: Schema, level: Sequence[str], groups: Groups = ()) -> None:
        self._schema, self.level = schema, tuple(level)
        columns = {feature.name: feature.source_column for feature in schema.sparse}
        # What is the session's own is stored once as it is.
        own = [[name for name in group if columns[name] not in self.level] for group in groups]
        self._plan = DedupPlan.of(*[group for group in own if group])
        self._to_batch = self.to_batch()

    @classmethod
    def find(cls, schema: Schema, groups: Groups, paths: Paths, filesystem: Any = None) -> Self | None:
        """The layout of the files at `paths`; None where a row is an impression."""
        about = footer(paths, filesystem)
        return cls(schema, session_level(about), groups) if has_sessions(about) else None

    @property
    def counted(self) -> str | None:
        """A column of one single value per impression, whose entries can be counted from footers; None: no such."""
        single = [*self._schema.labels, *([self._schema.weight] if self._schema.weight else ())]
        return next((name for name in single if name not in self.level), None)

    def validate(self, table: pa.Schema) -> None:
        """ConfigError unless the files have every column, of a type its feature can take."""
        self._to_batch.validate(table)
        self._schema.validate(impressions_of(table, self.level))

    def to_batch(self) -> SessionsToBatch:
        """Tables of sessions to the `Batch` of their impressions."""
        return SessionsToBatch(self._schema, session_level=self.level, plan=self._plan)


def footer(paths: Paths, filesystem: Any = None) -> Mapping[bytes, bytes]:
    """What the first file's footer says beside its columns: all files are written by one command."""
    located, files = locate(paths, filesystem)
    return read_footers(find_files(located, files)[:1], files)[0].about


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
