"""What the rows of the files are to the balancing: impressions, rows of one session side by side, or whole sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import pyarrow as pa

from lightning_intune.balance.fold import ReadSessions
from lightning_intune.balance.measure import MeasureImpressions, MeasureSessions
from lightning_intune.balance.settings import Balance
from lightning_intune.config import Schema, check_columns
from lightning_intune.dedup.footer import session_level
from lightning_intune.dedup.jagged import Batch
from lightning_intune.dedup.layout import Groups, SessionLayout
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.transform import DedupSparse
from lightning_intune.errors import ConfigError
from lightning_intune.flow.filesystems import locate
from lightning_intune.flow.parquet_files import find_files, read_footers
from lightning_intune.flow.row_groups import RowGroup
from lightning_intune.flow.source import ParquetSource
from lightning_intune.flow.transform import ToBatch


@final
class Units:
    """One split's units: how they are read, measured, and made into a batch.

    `dedup` are the groups of features that repeat together. ConfigError for files that are not in the session layout
    where they have to be, and for columns that are not as the schema and the layout say.
    """

    def __init__(self, settings: Balance, schema: Schema, dedup: Groups | None, paths: Any, filesystem: Any) -> None:
        self._settings, self._schema = settings, schema
        self._groups = [list(group) for group in dedup or ()]
        self._are_whole = settings.unit == "session" and settings.session is None
        level = session_level(_about(paths, filesystem)) if self._are_whole else (settings.session,)
        is_session = settings.unit == "session"
        self._layout = SessionLayout(schema, [name for name in level if name], self._groups) if is_session else None
        self._level = () if self._layout is None else self._layout.level

    @property
    def columns(self) -> tuple[str, ...]:
        """What is to be read."""
        more = [] if self._settings.session is None else [self._settings.session]
        return tuple(dict.fromkeys([*self._schema.columns, *more]))

    @property
    def are_rows(self) -> bool:
        """Whether the files' rows are the units, so that their number is known beforehand."""
        return self._settings.session is None

    def validate(self, table: pa.Schema, about: Mapping[bytes, bytes]) -> None:
        """ConfigError unless the files have every column, of a type its feature can take, and rows as the settings say.

        `about` is what their footers say.
        """
        if not self._are_whole and SessionLayout.of(self._schema, self._groups, about) is not None:
            raise ConfigError(
                "Balance: the rows of these files are sessions, as their footers say. Set unit to session, and leave "
                "session out, which is for rows that stand side by side."
            )
        check_columns("Balance: session", [name for name in self.columns if name in self._level], table.names)
        if self._are_whole and self._layout is not None:
            self._layout.validate(table)
        else:
            self._schema.validate(table)

    def reader(self, source: ParquetSource, *, shuffle: bool) -> Callable[[RowGroup], pa.Table]:
        """Row groups to tables of one unit a row."""
        if self._settings.session is not None:
            read = source.reader(shuffle_rows=False)
            return ReadSessions(read, self._settings.session, shuffle=shuffle)
        # Rows stay in their order where features repeat from one to the next.
        return source.reader(shuffle_rows=shuffle and (self._are_whole or not self._groups))

    def measure(self) -> MeasureImpressions | MeasureSessions:
        """A table's lengths and counts."""
        wanted = [
            feature.source_column for feature in self._schema.sparse if self._settings.length in (None, feature.name)
        ]
        wanted = list(dict.fromkeys(wanted))
        if self._settings.unit == "impression":
            return MeasureImpressions(wanted, weight=self._schema.weight)
        together = {name for group in self._groups for name in group}
        names = [feature.name for feature in self._schema.sparse if feature.source_column in wanted]
        return MeasureSessions(
            wanted,
            level=self._level,
            is_deduplicated=bool(names) and set(names) <= together,
            weight=self._schema.weight,
            rows=next((name for name in self._schema.columns if name not in self._level), None),
        )

    def to_batch(self) -> Callable[[pa.Table], Batch]:
        """Tables of units to batches."""
        if self._layout is not None:
            return self._layout.to_batch()
        sparse = DedupSparse(self._schema.sparse, DedupPlan.of(*self._groups)) if self._groups else None
        return ToBatch(self._schema, sparse=sparse)


def _about(paths: Any, filesystem: Any) -> Mapping[bytes, bytes]:
    """What the first file's footer says: all are written by one command."""
    located, files = locate(paths, filesystem)
    return read_footers(find_files(located, files)[:1], files)[0].about
