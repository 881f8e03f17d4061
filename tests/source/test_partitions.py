"""Tables laid out in folders: what their names say, what lies beside the data, and what holds no rows."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ParquetSource

JAN, FEB = datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def rows(source: ParquetSource, **reading: Any) -> list[dict[str, Any]]:
    reader = source.reader(**reading)
    source.reset()
    return [row for group in source for row in reader(group).to_pylist()]


@pytest.fixture
def by_day(tmp_path: Path) -> Path:
    write(tmp_path / "day=2026-01-01" / "hour=07" / "0.parquet", n=[1, 2])
    write(tmp_path / "day=2026-02-01" / "hour=18" / "0.parquet", n=[3])
    write(tmp_path / "day=2026-02-01" / "hour=__HIVE_DEFAULT_PARTITION__" / "0.parquet", n=[4])
    return tmp_path


@pytest.mark.parametrize("how", ["folder", "glob", "list"])
def test_folders_named_key_value_are_columns(by_day: Path, how: str) -> None:
    paths: Any = {
        "folder": by_day,
        "glob": f"{by_day}/**/*.parquet",
        "list": sorted(by_day.rglob("*.parquet")),  # as of a Delta table's snapshot
    }[how]
    source = ParquetSource(paths)
    assert [(field.name, field.type) for field in source.arrow_schema] == [
        ("n", pa.int64()),
        ("day", pa.date32()),
        ("hour", pa.int64()),
    ]
    assert [(row["n"], row["day"], row["hour"]) for row in rows(source)] == [
        (1, JAN, 7),
        (2, JAN, 7),
        (3, FEB, 18),
        (4, FEB, None),
    ]


def test_they_are_the_columns_that_arrow_finds(by_day: Path) -> None:
    """But for the types: Arrow leaves dates as text, and takes the smallest integers."""
    theirs = ds.dataset(by_day, partitioning="hive").to_table().to_pylist()
    assert [{**row, "day": str(row["day"])} for row in rows(ParquetSource(by_day))] == theirs


def test_they_may_be_asked_for_alone_in_any_order_and_as_dictionaries(by_day: Path) -> None:
    assert rows(ParquetSource(by_day, columns=["hour", "day"]))[2] == {"hour": 18, "day": FEB}
    write(by_day / "day=2026-02-01" / "hour=x" / "0.parquet", n=[5])  # not all hours are numbers now
    table = ParquetSource(by_day, columns=["hour"])
    assert [row["hour"] for row in rows(table, dictionaries=True)] == ["07", "07", "18", None, "x"]


def test_a_filter_on_them_rules_out_whole_files_unread(by_day: Path) -> None:
    source = ParquetSource(by_day, filters=[("day", "==", FEB)])
    assert [group.path.split("/")[-2] for group in source] == ["hour=18", "hour=__HIVE_DEFAULT_PARTITION__"]
    assert [row["n"] for row in rows(source)] == [3, 4]
    mixed = ParquetSource(by_day, columns=["n"], filters=(pc.field("hour") < 10) | (pc.field("n") == 4))
    assert [row["n"] for row in rows(mixed)] == [1, 2, 4]
    with pytest.raises(ConfigError, match="hold no row that the filters let through"):
        ParquetSource(by_day, filters=[("day", ">", FEB)])


def test_what_the_file_itself_holds_counts(tmp_path: Path) -> None:
    write(tmp_path / "day=1" / "0.parquet", n=[1], day=[10])
    write(tmp_path / "day=2" / "0.parquet", n=[2])
    source = ParquetSource(tmp_path, filters=[("day", "in", [2, 10])])
    assert [row["day"] for row in rows(source)] == [10, 2]


def test_a_file_outside_such_folders_has_the_default_or_null(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", n=[1])
    write(tmp_path / "kind=a" / "0.parquet", n=[2])
    assert [row["kind"] for row in rows(ParquetSource(tmp_path))] == [None, "a"]
    assert [row["kind"] for row in rows(ParquetSource(tmp_path, defaults={"kind": "b"}))] == ["b", "a"]


def test_escaped_names_and_values_are_read_back(tmp_path: Path) -> None:
    """Written by Arrow, whose escapes are those of URLs."""
    table = pa.table({"n": [1, 2], "c ty": ["a/b=c", "Zürich"]})
    ds.write_dataset(table, tmp_path, format="parquet", partitioning=["c ty"], partitioning_flavor="hive")
    assert sorted((row["n"], row["c ty"]) for row in rows(ParquetSource(tmp_path))) == [(1, "a/b=c"), (2, "Zürich")]


@given(
    values=st.lists(
        st.one_of(st.integers(-9999, 9999), st.dates(), st.floats(-99, 99).map(lambda x: round(x, 3)), st.text("ab-1")),
        min_size=1,
        max_size=5,
        unique_by=str,
    )
)
def test_a_partition_column_holds_every_folders_value(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any]
) -> None:
    root = tmp_path_factory.mktemp("parts")
    for number, value in enumerate(values):
        write(root / f"v={value}" / f"{number}.parquet", n=[number])
    source = ParquetSource([f"{root}/v={value}/{number}.parquet" for number, value in enumerate(values)])
    kind = source.arrow_schema.field("v").type
    expected = [pa.scalar(str(value)).cast(kind).as_py() if str(value) else None for value in values]
    assert [row["v"] for row in rows(source)] == expected
    if all(isinstance(value, int) for value in values):
        assert kind == pa.int64()
    if all(isinstance(value, datetime.date) for value in values):
        assert kind == pa.date32()


def test_markers_hidden_files_and_unfinished_ones_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "day=1" / "0.parquet", n=[1])
    for name in ("_SUCCESS", "_metadata", ".0.parquet.crc", "_temporary/0/part.parquet", ".staging/x.parquet"):
        path = tmp_path / "day=1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert rows(ParquetSource(tmp_path)) == [{"n": 1, "day": 1}]


def test_files_and_row_groups_without_rows_are_passed_over(tmp_path: Path) -> None:
    schema = pa.schema({"n": pa.int64()})
    pq.write_table(schema.empty_table(), tmp_path / "0.parquet")  # a file of no rows
    with pq.ParquetWriter(tmp_path / "1.parquet", schema) as writer:
        for numbers in ([], [1, 2], [], [3]):
            writer.write_table(pa.table({"n": numbers}, schema=schema))
    with pq.ParquetWriter(tmp_path / "2.parquet", schema):
        pass  # and one of no row groups
    source = ParquetSource(tmp_path)
    assert [row["n"] for row in rows(source)] == [1, 2, 3]
    assert all(group.num_rows > 0 for group in source)


def test_nested_lists_and_structs_come_whole_alone_and_widened(tmp_path: Path) -> None:
    old = pa.table({"ids": [[[1], []], [], None], "user": [{"age": 3}, None, {"age": 4}], "n": [1, 2, 3]})
    pq.write_table(
        old.cast(
            pa.schema(
                {
                    "ids": pa.list_(pa.list_(pa.int32())),
                    "user": pa.struct({"age": pa.int32()}),
                    "n": pa.int32(),
                }
            )
        ),
        tmp_path / "0.parquet",
    )
    new = pa.table({"n": [4], "user": [{"age": 5, "city": "x"}], "ids": [[[2**40, None]]]})
    pq.write_table(new, tmp_path / "1.parquet")
    source = ParquetSource(tmp_path, columns=["ids", "user"])
    assert rows(source) == [
        {"ids": [[1], []], "user": {"age": 3, "city": None}},
        {"ids": [], "user": None},
        {"ids": None, "user": {"age": 4, "city": None}},
        {"ids": [[2**40, None]], "user": {"age": 5, "city": "x"}},
    ]
    assert [row["ids"] for row in rows(ParquetSource(tmp_path, columns=["ids"]))][3] == [[2**40, None]]


def test_a_filter_lets_a_default_through(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", n=[1])
    write(tmp_path / "1.parquet", n=[2, 3], kind=["b", "a"])
    source = ParquetSource(tmp_path, filters=[("kind", "==", "b")], defaults={"kind": "b"})
    assert [row["n"] for row in rows(source)] == [1, 2]
