"""Batches of a fixed number of sessions, or of impressions of sessions: nothing lost, and resumed anywhere."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.config import Schema, SparseFeature
from lightning_intune.dedup import SessionBatches, SessionsToBatch
from lightning_intune.errors import ConfigError
from lightning_intune.flow import IterableSource

COUNTS = st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=4)
"""Impressions of each session of each table."""


def layout(tables: list[list[int]]) -> list[pa.Table]:
    """Sessions numbered over all tables, impressions too; texts in lists of lists."""
    made: list[pa.Table] = []
    session, impression = 0, 0
    for counts in tables:
        rows: list[dict[str, Any]] = []
        for count in counts:
            numbers = list(range(impression, impression + count))
            words = [[f"w{n}"] * (n % 3) or None for n in numbers]
            # A session without impressions may be null, too.
            rows.append({"s": session, "n": numbers if count or session % 2 else None, "words": words})
            session, impression = session + 1, impression + count
        types = [("s", pa.int64()), ("n", pa.list_(pa.int64())), ("words", pa.large_list(pa.list_(pa.string())))]
        made.append(pa.Table.from_pylist(rows, schema=pa.schema(types)))
    return made


def flat(tables: list[pa.Table]) -> list[tuple[Any, ...]]:
    rows = [row for table in tables for row in table.to_pylist()]
    return [(row["s"], *entry) for row in rows for entry in zip(row["n"] or [], row["words"], strict=True)]


@given(tables=COUNTS, size=st.integers(1, 7), cut=st.integers(0, 6), drop_last=st.booleans())
def test_impressions_come_in_equal_batches_and_a_resumed_run_goes_on(
    tables: list[list[int]], size: int, cut: int, drop_last: bool
) -> None:
    def node() -> SessionBatches:
        return SessionBatches(IterableSource(layout(tables)), size, session_level=["s"], drop_last=drop_last)

    whole, expected = list(node()), flat(layout(tables))
    sizes = [len(flat([table])) for table in whole]
    assert flat(whole) == expected[: sum(sizes)]
    assert len(expected) - sum(sizes) < (size if drop_last else 1)
    assert all(found == size for found in sizes[:-1])
    assert not drop_last or set(sizes) <= {size}
    first, second = node(), node()
    first.reset()
    head = [table for _, table in zip(range(cut), first, strict=False)]
    second.reset(first.state_dict())
    assert flat([*head, *second]) == flat(whole)


@given(
    tables=st.lists(st.lists(st.integers(1, 4), max_size=4), max_size=4), size=st.integers(1, 5), cut=st.integers(0, 5)
)
def test_rows_come_in_batches_of_so_many_sessions(tables: list[list[int]], size: int, cut: int) -> None:
    made: list[pa.Table] = []
    session = 0
    for counts in tables:
        ids = [session + place for place, count in enumerate(counts) for _ in range(count)]
        session += len(counts)
        made.append(pa.table({"s": pa.array(ids, pa.int64())}))

    def node() -> SessionBatches:
        return SessionBatches(IterableSource(made), size, session="s")

    whole = [table["s"].to_pylist() for table in node()]
    assert [s for ids in whole for s in ids] == [s for table in made for s in table["s"].to_pylist()]
    assert [len(set(ids)) for ids in whole] == [size] * (session // size) + ([session % size] if session % size else [])
    first, second = node(), node()
    first.reset()
    head = [table["s"].to_pylist() for _, table in zip(range(cut), first, strict=False)]
    second.reset(first.state_dict())
    assert head + [table["s"].to_pylist() for table in second] == whole


def test_a_session_longer_than_a_batch_is_trained_in_several() -> None:
    features = [SparseFeature(name=name, num_embeddings=80, transform="id") for name in ("user", "item")]
    schema = Schema(sparse=features, labels=["click"])
    table = pa.table({"user": [3, 5], "item": [[1, 2, 3, 4, 5], [6]], "click": [[0, 1, 0, 1, 0], [1]]})
    node = SessionBatches(IterableSource([table]), 2, session_level=["user"])
    batches = [SessionsToBatch(schema, session_level=["user"])(part) for part in node]
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert [batch.sparse["user"][0].tolist() for batch in batches] == [[4, 4], [4, 4], [4, 6]]
    assert [batch.sparse["item"][0].tolist() for batch in batches] == [[2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 2}, "give session= .* or session_level="),
        ({"batch_size": 2, "session": "s", "session_level": ["s"]}, "and not both"),
        ({"batch_size": 2, "session_level": "s"}, r"Give \['s'\]"),
        ({"session": "s", "batch_size": 0}, "batch_size=0 makes no batch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SessionBatches(IterableSource(list[pa.Table]()), **options)


def test_tables_of_another_layout_are_named() -> None:
    table = pa.table({"s": [1], "n": [[1]], "c": [[1, 2]], "x": [3]})
    with pytest.raises(ConfigError, match="no column 'session'"):
        next(SessionBatches(IterableSource([table]), 2, session="session"))
    with pytest.raises(ConfigError, match="column 'x' holds no lists"):
        next(SessionBatches(IterableSource([table]), 2, session_level=["s"]))
    with pytest.raises(ValueError, match="'n' and 'c' differ"):
        next(SessionBatches(IterableSource([table]), 2, session_level=["s", "x"]))
