"""What a sample of rows says about its features: how long values stay, how lists shift; and the plan for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.config import check_columns
from lightning_intune.dedup.columns import column_rows
from lightning_intune.dedup.plan import Changes, DedupPlan, FeatureStats
from lightning_intune.dedup.rows import Rows, copy_rows


def measure(
    table: pa.Table, columns: Sequence[str], *, session_column: str | None = None
) -> tuple[list[FeatureStats], Changes]:
    """Stats of each column over rows in session order, and `changes` [columns, rows] for `DedupPlan.choose`.

    Without `session_column` all rows count as one session, which gives the factor of rows as they stand. A row of
    `changes` is left out where it begins a session. A few ten thousand rows suffice. ConfigError for unknown columns.

    >>> table = pa.table({"session": [1, 1, 1, 2], "user": [7, 7, 7, 9], "item": [1, 2, 3, 3]})
    >>> stats, changes = measure(table, ["user", "item"], session_column="session")
    >>> [(one.name, one.samples_per_session, one.stay_share) for one in stats]
    [('user', 2.0, 1.0), ('item', 2.0, 0.0)]
    """
    check_columns("measure", [*columns, *([session_column] if session_column else [])], table.column_names)
    num_rows = table.num_rows
    follows = np.ones(max(0, num_rows - 1), np.bool_)
    if session_column is not None:
        follows = ~_any_changed(column_rows(table.column(session_column)))
    samples = num_rows / max(1, num_rows - int(follows.sum()))
    stats: list[FeatureStats] = []
    changes: list[npt.NDArray[np.bool_]] = []
    for name in columns:
        parts = column_rows(table.column(name))
        differs = _any_changed(parts)
        changed, rows = differs[follows], parts[0]
        # Of texts only the bytes and their sizes are known here, not which are one another's: no shift is looked for.
        shifted, added = _shifts(rows, np.flatnonzero(follows & differs) + 1) if len(parts) == 1 else (0.0, 0.0)
        stats.append(
            FeatureStats(
                name=name,
                mean_length=float(rows.lengths.mean()) if num_rows else 0.0,
                value_bytes=_value_bytes(parts),
                samples_per_session=max(1.0, samples),
                stay_share=1 - float(changed.mean()) if len(changed) else 1.0,
                shift_share=shifted / len(changed) if len(changed) else 0.0,
                new_values=added,
            )
        )
        changes.append(changed)
    return stats, np.stack(changes) if changes else np.empty((0, int(follows.sum())), np.bool_)


def plan_for(
    table: pa.Table, columns: Sequence[str], *, session_column: str | None = None, min_factor: float = 1.5
) -> DedupPlan:
    """The plan that `DedupPlan.choose` makes of what `measure` finds in these rows."""
    return DedupPlan.choose(*measure(table, columns, session_column=session_column), min_factor=min_factor)


def _any_changed(parts: Sequence[Rows]) -> npt.NDArray[np.bool_]:
    return np.logical_or.reduce([_changed(rows) for rows in parts])


def _value_bytes(parts: Sequence[Rows]) -> int:
    """Bytes of one value; of texts the mean."""
    if len(parts) == 1:
        return parts[0].words.itemsize
    count, num_bytes = (int(rows.lengths.sum(dtype=np.int64)) for rows in parts)
    return max(1, round(num_bytes / max(1, count)))


def _changed(rows: Rows) -> npt.NDArray[np.bool_]:
    """[R - 1], whether each row but the first differs from the one before."""
    lengths = rows.lengths
    differs = lengths[1:] != lengths[:-1]
    pairs = np.flatnonzero(~differs)
    left, right = copy_rows(rows, pairs), copy_rows(rows, pairs + 1)
    counts = lengths[pairs]
    owner = np.repeat(pairs, counts)
    differs[owner[left != right]] = True
    return differs


def _shifts(rows: Rows, places: npt.NDArray[np.int64], sample: int = 2000) -> tuple[float, float]:
    """Of the rows at `places`, how many continue the row before, and how many values such a row adds, in the mean."""
    if len(places) == 0:
        return 0.0, 0.0
    looked_at = places[:: max(1, len(places) // sample)]
    added: list[int] = []
    for row in looked_at.tolist():
        before, now = _row(rows, row - 1), _row(rows, row)
        kept = max(_overlap(before, now), _overlap(before[::-1], now[::-1]))
        if kept:
            added.append(len(now) - kept)
    share = len(added) / len(looked_at)
    return share * len(places), float(np.mean(added)) if added else 0.0


def _row(rows: Rows, row: int) -> list[int]:
    begin = int(rows.starts[row])
    return rows.words[begin : begin + int(rows.lengths[row])].tolist()


def _overlap(before: list[int], row: list[int]) -> int:
    """How many of the last values of `before` are the first of `row`, at most."""
    return next((n for n in range(min(len(before), len(row)), 0, -1) if before[-n:] == row[:n]), 0)
