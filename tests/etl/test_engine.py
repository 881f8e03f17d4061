"""The engine: rows that differ hash differently, amounts of memory are read, missing extras are named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_intune.dedup.etl.engine import failures_named, open_engine, parse_bytes, row_hash
from lightning_intune.dedup.etl.inputs import describe
from lightning_intune.errors import ConfigError
from tests.etl.helpers import LIMIT

pytest.importorskip("duckdb")

# Pairs of rows that DuckDB's own hash of all columns takes for one, and some that it does not.
PAIRS = {
    "null and empty list": ("NULL::INT[] AS a", "[]::INT[] AS a"),
    "a null inside": ("[NULL]::INT[] AS a", "[]::INT[] AS a"),
    "values moved to the next list": ("[1, 2] AS a, [3] AS b", "[1] AS a, [2, 3] AS b"),
    "values moved within a nested list": ("[[1, 2], [3]] AS a", "[[1], [2, 3]] AS a"),
    "null and empty nested": ("[[1], NULL] AS a", "[[1], []::INT[]] AS a"),
    "swapped columns": ("1 AS a, 2 AS b", "2 AS a, 1 AS b"),
    "order in a list": ("[1, 2] AS a", "[2, 1] AS a"),
    "null and zero": ("NULL::INT AS a", "0 AS a"),
    "null and empty text": ("NULL::VARCHAR AS a", "'' AS a"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_rows_that_differ_hash_differently_and_equal_ones_alike(case: str, tmp_path: Path) -> None:
    with open_engine(LIMIT, tmp_path, threads=1) as engine:
        one, other = PAIRS[case]
        hashes = [
            engine.sql(f"SELECT {row_hash(describe(engine, f'SELECT {row}'))} FROM (SELECT {row})").fetchall()[0][0]
            for row in (one, other, one)
        ]
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("2g", 2**31), ("1000", 1000)], ids=str
)
def test_amounts_of_memory_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "lots", "-1G", "1X"])
def test_other_amounts_are_mistakes(text: str) -> None:
    with pytest.raises(ConfigError, match="is no amount of memory"):
        parse_bytes(text)


def test_without_duckdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Any = None
    monkeypatch.setitem(sys.modules, "duckdb", absent)
    with pytest.raises(ConfigError, match=r"lightning-intune\[etl\]"), open_engine(LIMIT, tmp_path, threads=1):
        pass


def test_an_assertion_of_duckdb_over_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    # Mutation 9815 of the soak's hostile files, a page of a snappy Parquet file, ends so.
    import duckdb

    with (
        pytest.raises(
            ConfigError, match=r"cannot be read, or DuckDB is at fault \(INTERNAL Error: index 6\)"
        ) as caught,
        failures_named(tmp_path),
    ):
        raise duckdb.InternalException("INTERNAL Error: index 6\nStack trace\n/lib/x")
    assert "Stack" not in str(caught.value)
