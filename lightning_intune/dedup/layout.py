"""Parquet files whose rows are sessions: recognised by their footers, and made into batches of impressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self, final

import pyarrow as pa

from lightning_intune.config import Schema
from lightning_intune.dedup.footer import has_sessions, impressions_of, session_level
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.sessions import SessionsToBatch

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
    def of(
        cls, schema: Schema, groups: Groups, about: Mapping[bytes, bytes], from_folders: Sequence[str] = ()
    ) -> Self | None:
        """The layout of files whose footers say `about`; columns `from_folders` have one value per file.

        None where a row is an example: an impression, or a session all of whose labels are its own.
        """
        if not has_sessions(about):
            return None
        level = (*session_level(about), *from_folders)
        is_example = bool(schema.labels) and all(name in level for name in schema.labels)
        return None if is_example else cls(schema, level, groups)

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
