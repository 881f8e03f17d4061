"""Files of rows, whatever their format, as one relation the engine can read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import pyarrow as pa
from pyarrow import fs

from lightning_intune.column_types import is_list
from lightning_intune.dedup.etl.engine import text
from lightning_intune.dedup.footer import has_sessions
from lightning_intune.errors import ConfigError
from lightning_intune.flow.filesystems import is_local, locate
from lightning_intune.flow.parquet_files import common_schema, find_files, read_footers

Kind = Literal["parquet", "csv", "json", "otto"]

_ENDINGS: dict[str, Kind] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
}  # fmt: skip
FILE, TIE = "__lightning_intune_file", "__lightning_intune_tie"
"""Columns that a relation has beside the user's: the file's path, and what orders rows of equal time."""


@final
@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the rows are, and how SQL reads them."""

    kind: Kind
    files: tuple[str, ...]
    relation: str
    """SQL: all columns of `columns`, then `FILE` and `TIE`."""
    columns: dict[str, Any]
    """Name -> DuckDB type."""
    schema: pa.Schema | None
    """Of Parquet: the types as Arrow has them, which the output keeps."""


def open_inputs(engine: Any, paths: Sequence[str], *, history: int = 0, line_bytes: int = 2**24) -> Inputs:
    """Find the files and learn their columns. Files all have one format, told by their endings (`.gz` beside).

    JSON lines with `session` and `events` (of `aid`, `ts`, `type`) are the OTTO data: an event becomes a row, and with
    `history` the list `history` of the session's last so many item ids before it. ConfigError for what cannot be read,
    naming file and column.
    """
    located, filesystem = _located(paths)
    kind = _kind(located)
    schema = _parquet_schema(located, filesystem) if kind == "parquet" else None
    if schema is not None:
        _check(kind, {}, schema, located)
    names = f"[{', '.join(map(text, located))}]"
    if kind == "parquet":
        # `file_index` counts files as they are listed; rows keep their order within equal times.
        read = f"read_parquet({names}, union_by_name=true, file_row_number=true)"
        relation = f"SELECT * EXCLUDE (file_row_number), filename AS {FILE}, file_index * 2**40 + file_row_number"
        relation = f"{relation} AS {TIE} FROM {read}"
    elif kind == "csv":
        read = f"read_csv({names}, union_by_name=true, filename={text(FILE)}, sample_size=200000)"
        relation = f"SELECT *, 0 AS {TIE} FROM {read}"
    else:
        read = (
            f"read_json({names}, format='newline_delimited', union_by_name=true, filename={text(FILE)}, "
            f"sample_size=200000, maximum_object_size={min(max(line_bytes, 2**24), 2**28)})"
        )
        relation = f"SELECT *, 0 AS {TIE} FROM {read}"
    columns = describe(engine, relation)
    if kind == "json" and _is_otto(columns):
        kind, relation = "otto", _otto(relation, history)
        columns = describe(engine, relation)
    elif history:
        raise ConfigError(f"history={history} is made of OTTO's events only, and '{located[0]}' is not OTTO's format.")
    if kind == "csv" and all(re.fullmatch(r"column\d+", name) for name in columns):
        raise ConfigError(
            f"the first line of {_shown(located)} was not taken for a header: it has none, or lines differ in how many "
            "fields they have. Give every line as many as the header, or write Parquet."
        )
    _check(kind, columns, schema, located)
    return Inputs(kind=kind, files=tuple(located), relation=relation, columns=columns, schema=schema)


def describe(engine: Any, relation: str) -> dict[str, Any]:
    """The columns of a relation with their DuckDB types, less those of our own."""
    found = engine.sql(f"SELECT * FROM ({relation}) LIMIT 0")
    pairs = zip(found.columns, found.types, strict=True)
    return {name: kind for name, kind in pairs if name not in (FILE, TIE)}


def _located(paths: Sequence[str]) -> tuple[list[str], fs.FileSystem]:
    with _in_our_name():
        located, filesystem = locate(list(paths))
        files = find_files(located, filesystem)
    if not is_local(filesystem):
        raise ConfigError(f"'{paths[0]}' is not on this machine, and sorting reads it twice. Copy it here first.")
    return files, filesystem


def _kind(files: Sequence[str]) -> Kind:
    kinds: dict[str, str] = {}
    for file in files:
        plain = file.lower().removesuffix(".gz").removesuffix(".zst")
        kind = next((kind for ending, kind in _ENDINGS.items() if plain.endswith(ending)), None)
        if kind is None:
            raise ConfigError(
                f"'{file}' has none of the endings {', '.join(_ENDINGS)} (with or without .gz), so its format is "
                "unknown. Rename it, or leave it out."
            )
        kinds.setdefault(kind, file)
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise ConfigError(f"'{one}' and '{other}' have different formats. Convert them one format at a time.")
    return _ENDINGS[next(ending for ending, kind in _ENDINGS.items() if kind in kinds)]


def _parquet_schema(files: Sequence[str], filesystem: fs.FileSystem) -> pa.Schema:
    with _in_our_name():
        footers = read_footers(files, filesystem)
        schema = common_schema(footers)
    _check_lossless([(footer.path, footer.fragment.physical_schema) for footer in footers], schema)
    for footer in footers:
        if has_sessions(footer.about):
            raise ConfigError(f"'{footer.path}' is in the session layout already, so there is nothing to cluster.")
    return schema


def _check_lossless(files: Sequence[tuple[str, pa.Schema]], schema: pa.Schema) -> None:
    """ConfigError where fractions in one file would round the large ids of another."""
    for path, own in files:
        for field in own:
            value, joined = _leaf(field.type), _leaf(schema.field(field.name).type)
            exact_bits = {pa.float16(): 8, pa.float32(): 16, pa.float64(): 32}.get(joined)
            if exact_bits is not None and pa.types.is_integer(value) and value.bit_width > exact_bits:
                other = next(name for name, their in files if _is_fractions(their, field.name))
                raise ConfigError(
                    f"column '{field.name}' holds {field.type} in '{path}' and fractions in '{other}', and as "
                    "fractions large ids would be rounded. Write one of the files anew, or leave it out."
                )


def _is_fractions(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and pa.types.is_floating(_leaf(schema.field(name).type))


def _leaf(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, of lists those in them."""
    while is_list(kind):
        kind = kind.value_type
    return kind


@contextmanager
def _in_our_name() -> Generator[None]:
    """Errors of the functions shared with `ParquetSource`, which no user of a command knows."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("ParquetSource: ")) from error


def _is_otto(columns: dict[str, Any]) -> bool:
    events = str(columns.get("events", ""))
    return set(columns) == {"session", "events"} and all(f"{name} " in events or f'"{name}" ' in events
                                                         for name in ("aid", "ts", "type"))  # fmt: skip


def _otto(relation: str, history: int) -> str:
    # `place` runs beside the events, so that events of the same millisecond keep their order.
    extra = f", list_slice(aids, greatest(place - {history}, 1), place - 1) AS history" if history else ""
    numbered = (
        f"SELECT session, unnest(events) AS event, unnest(range(1, len(events) + 1)) AS place, "
        f"[e.aid for e in events] AS aids, {FILE} FROM ({relation})"
    )
    return (
        f"SELECT session, event.aid AS aid, event.ts AS ts, event.type AS type{extra}, {FILE}, place AS {TIE} "
        f"FROM ({numbered})"
    )


def _check(kind: Kind, columns: dict[str, Any], schema: pa.Schema | None, files: Sequence[str]) -> None:
    names = list(columns) if schema is None else schema.names
    taken = [name for name in names if name.lower() in ("file_row_number", "file_index", FILE, TIE)]
    if taken:
        raise ConfigError(f"column '{taken[0]}' of '{files[0]}' has a name that is needed for sorting. Rename it.")
    folded = Counter(name.lower() for name in names)
    twice = [name for name in names if folded[name.lower()] > 1]
    if twice:
        raise ConfigError(f"columns {twice} of '{files[0]}' differ in case only, and SQL takes them for one. Rename.")
    mixed = [name for name, type_ in columns.items() if "JSON" in str(type_) and kind == "json"]
    if mixed:
        raise ConfigError(
            f"column '{mixed[0]}' holds values of different types in {_shown(files)} (such as a number here and a list "
            "there), and a Parquet column has one. Make them one type, or leave the column out."
        )


def _shown(files: Sequence[str]) -> str:
    return f"'{files[0]}'" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
