"""Rows of one session, side by side in a row group, as one row."""

from __future__ import annotations

from typing import final

import numpy as np
import pyarrow as pa

from lightning_intune.dedup.etl.session_layout import fold_sessions, session_bounds
from lightning_intune.flow.row_groups import ReadRowGroup, RowGroup


@final
class ReadSessions:
    """A function from a `RowGroup` to a table of its sessions: `session` as it is, every other column a list.

    A session that crosses from one row group to the next, or that two ranks share, is two. With `shuffle` the order of
    the sessions is drawn from the descriptor's (seed, epoch, index). Picklable, and safe in several threads.
    """

    def __init__(self, read: ReadRowGroup, session: str, *, shuffle: bool) -> None:
        self._read, self._session, self._shuffle = read, session, shuffle

    def __call__(self, row_group: RowGroup) -> pa.Table:
        rows = self._read(row_group)
        table = fold_sessions(rows, session_bounds(rows.column(self._session)), [self._session])
        if not self._shuffle:
            return table
        rng = np.random.Generator(np.random.PCG64([row_group.seed, row_group.epoch, row_group.index]))
        return table.take(pa.array(rng.permutation(table.num_rows)))
