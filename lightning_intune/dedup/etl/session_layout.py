"""The session layout: rows of one session side by side become one row, and back."""

from __future__ import annotations

import json
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lightning_intune.column_types import plain
from lightning_intune.dedup.footer import LAYOUT_KEY, LEVEL_KEY

SESSION_KEY = b"lightning_intune.session_column"
TIME_KEY = b"lightning_intune.time_column"
PARTITION_KEY = b"lightning_intune.partition"


def file_metadata(
    layout: str, *, session: str, time: str, session_level: Collection[str], partition: str
) -> dict[bytes, bytes]:
    """What a file of either layout says of itself, in its Parquet footer; only `sessions` names `session_level`."""
    about = {LAYOUT_KEY: layout, SESSION_KEY: session, TIME_KEY: time, PARTITION_KEY: partition}
    if layout == "sessions":
        about[LEVEL_KEY] = json.dumps(list(session_level))
    return {key: value.encode() for key, value in about.items()}


def fold_sessions(rows: pa.Table, bounds: npt.NDArray[np.int64], session_level: Collection[str]) -> pa.Table:
    """One row per session: columns of `session_level` as in the session's first row, the others as lists.

    `bounds` [sessions + 1] are the rows where sessions begin, the last being the number of rows.

    >>> rows = pa.table({"session": [7, 7, 8], "aid": [1, 2, 3]})
    >>> fold_sessions(rows, np.array([0, 2, 3]), ["session"]).to_pylist()
    [{'session': 7, 'aid': [1, 2]}, {'session': 8, 'aid': [3]}]
    """
    first = pa.array(bounds[:-1])
    rows = rows.combine_chunks()
    folded: list[pa.Array] = []
    for name in rows.column_names:
        column = rows.column(name)
        values = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        folded.append(values.take(first) if name in session_level else _lists(values, bounds))
    return pa.Table.from_arrays(folded, names=rows.column_names)


def unfold_sessions(sessions: pa.Table, session_level: Collection[str]) -> pa.Table:
    """The rows again, in order; the inverse of `fold_sessions`. There has to be a column that is a list."""
    sessions = sessions.combine_chunks()
    lists = next(name for name in sessions.column_names if name not in session_level)
    parents = pc.list_parent_indices(sessions.column(lists))
    columns = {
        name: column.take(parents) if name in session_level else pc.list_flatten(column)
        for name, column in zip(sessions.column_names, sessions.columns, strict=True)
    }
    return pa.table(columns)


def session_bounds(ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where sessions begin in a column whose equal values stand side by side, and its length at the end.

    >>> session_bounds(pa.chunked_array([[7, 7, 8]])).tolist()
    [0, 2, 3]
    """
    whole = ids.cast(plain(ids.type)).combine_chunks()  # Arrow finds no runs in dictionaries
    ends = pc.run_end_encode(whole).run_ends if len(whole) else pa.array([], pa.int32())
    return np.concatenate([[0], np.asarray(ends, dtype=np.int64)])


def _lists(values: pa.Array, bounds: npt.NDArray[np.int64]) -> pa.Array:
    if bounds[-1] > np.iinfo(np.int32).max:
        return pa.LargeListArray.from_arrays(pa.array(bounds), values)
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values)
