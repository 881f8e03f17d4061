"""Columns that stand in the names of folders, as Hive, Spark and Delta lay tables out: `day=2026-01-01/0.parquet`."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

_NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's name for a null, taken over by all others
_INTEGER = re.compile(r"-?\d{1,18}")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def partition_texts(path: str) -> dict[str, str | None]:
    """What the folders of `path` say, by column; None for a null.

    >>> partition_texts("clicks/day=2026-01-01/country=C%C3%B4te/0.parquet")
    {'day': '2026-01-01', 'country': 'Côte'}
    """
    texts: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        name, mark, text = folder.partition("=")
        if name and mark:
            texts[unquote(name)] = None if text in ("", _NULL) else unquote(text)
    return texts


def partition_types(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """The type of each partition column: the first of int64, double, date32, string that holds all its texts.

    >>> partition_types(["day=2026-01-01/hour=07/a", "day=2026-01-02/hour=__HIVE_DEFAULT_PARTITION__/a"])
    {'day': DataType(date32[day]), 'hour': DataType(int64)}
    """
    texts: dict[str, list[str]] = {}
    for path in paths:
        for name, text in partition_texts(path).items():
            texts.setdefault(name, []).extend([] if text is None else [text])
    return {name: _type_of(set(found)) for name, found in texts.items()}


def partition_value(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """The value of a partition column in one file."""
    return pa.scalar(None, kind) if text is None else pa.scalar(text).cast(kind)


def partition_guarantee(path: str, types: Mapping[str, pa.DataType]) -> pc.Expression | None:
    """What is true of every row of the file at `path`: with it filters rule whole files out."""
    known: pc.Expression | None = None
    for name, text in partition_texts(path).items():
        if name in types:
            field = pc.field(name)
            one = field.is_null() if text is None else field == partition_value(text, types[name])
            known = one if known is None else known & one
    return known


def _type_of(texts: set[str]) -> pa.DataType:
    if texts and all(_INTEGER.fullmatch(text) for text in texts):
        return pa.int64()
    if texts and all(_INTEGER.fullmatch(text) or _DECIMAL.fullmatch(text) for text in texts):
        return pa.float64()
    if texts and all(_is_date(text) for text in texts):
        return pa.date32()
    return pa.string()


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True
