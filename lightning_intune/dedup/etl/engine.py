"""The embedded database that sorts and measures: DuckDB under a memory limit, spilling to a folder of ours."""

from __future__ import annotations

import errno
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_intune.dedup.etl.output_file import DiskFullError
from lightning_intune.errors import ConfigError

MIB = 2**20
LEAST_LIMIT_BYTES = 512 * MIB
_OURS_BYTES = 300 * MIB  # Python, Arrow and the row group being written
_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from `512MiB`, `1.5G`, `2 GB`; units are powers of 1024. ConfigError for anything else.

    >>> parse_bytes("1.5 GiB") / 2**30
    1.5
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    if match is None:
        raise ConfigError(f"'{text}' is no amount of memory. Write it like 512MiB or 4GiB.")
    return int(float(match[1]) * _UNITS[match[2]])


@contextmanager
def open_engine(limit_bytes: int, scratch: Path, *, threads: int, scratch_bytes: int | None = None) -> Generator[Any]:
    """A DuckDB connection for a process that shall stay below `limit_bytes`; what it spills goes into `scratch`.

    DuckDB counts its buffers only, and goes over its own limit by 90 to 190 MiB (2.0, at limits of 200-600 MiB), so it
    is given five sixths of what our own side leaves. ConfigError below 512 MiB, and without the extra [etl].
    """
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError("this command sorts with DuckDB: pip install 'lightning-intune[etl]'.") from error
    if limit_bytes < LEAST_LIMIT_BYTES:
        raise ConfigError(
            f"a memory limit of {limit_bytes // MIB} MiB is too little for the libraries alone. Give 512 MiB or more."
        )
    config: dict[str, Any] = {
        "memory_limit": f"{(limit_bytes - _OURS_BYTES) * 5 // 6 // MIB}MiB",
        "threads": threads,
        "temp_directory": str(scratch),
        "preserve_insertion_order": False,  # what has an order says ORDER BY; the rest would only hold memory
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    with duckdb.connect(config=config) as connection, failures_named(scratch):
        connection.sql("SET TimeZone = 'UTC'")
        connection.sql("SET enable_progress_bar = false")  # it would write into our --json on stdout
        if scratch_bytes is not None:  # given at connect, DuckDB 2.0.0 shows the limit and does not keep to it
            connection.sql(f"SET max_temp_directory_size = '{max(1, scratch_bytes // MIB)}MiB'")
        yield connection


@contextmanager
def failures_named(scratch: Path) -> Generator[None]:
    """DuckDB's errors in our words: a full disk, too little memory, a file that cannot be read as it should."""
    import duckdb

    try:
        yield
    except (duckdb.Error, OSError) as error:  # OSError: through Arrow's stream, the error is but its text
        named = _named(error, scratch)
        if named is error:
            raise
        raise named from error


def _named(error: Exception, scratch: Path) -> Exception:
    import duckdb

    words = str(error)
    is_streamed = isinstance(error, OSError) and not isinstance(error, DiskFullError)
    if "max_temp_directory_size" in words or (not isinstance(error, DiskFullError) and "No space left" in words):
        return DiskFullError(
            errno.ENOSPC,
            f"no space is left for sorting in '{scratch}' ({_first_line(words)}). Free some, or name another disk with "
            "--scratch, then run the same command again: finished partitions are kept.",
        )
    if isinstance(error, duckdb.OutOfMemoryException) or (is_streamed and words.startswith("Out of Memory Error")):
        return ConfigError(
            f"the memory limit does not suffice ({_first_line(words)}). Raise --memory-limit, or lower --threads."
        )
    # Damaged pages may also trip an assertion of DuckDB's, whose text is mostly its stack.
    if isinstance(error, duckdb.InternalException) or (is_streamed and words.startswith("INTERNAL Error")):
        return ConfigError(
            f"the data cannot be read, or DuckDB is at fault ({_first_line(words)}). Write the files anew, and tell us "
            "should sound ones end so too."
        )
    unreadable = (duckdb.IOException, duckdb.InvalidInputException, duckdb.ConversionException, duckdb.BinderException)
    # Its Parquet reader raises the bare class for damaged pages and footers; our own SQL would fail with another.
    if (
        isinstance(error, unreadable)
        or type(error) is duckdb.Error
        or (is_streamed and words.startswith(("IO Error", "Invalid Input Error")))
    ):
        return ConfigError(f"the data cannot be read: {' '.join(words.split())[:600]}")
    return error


def quoted(name: str) -> str:
    """A column's name as SQL takes it, whatever is in it.

    >>> print(quoted("user"))
    "user"
    """
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text as SQL takes it."""
    return "'" + value.replace("'", "''") + "'"


def row_hash(columns: Mapping[str, Any]) -> str:
    """SQL for one 64-bit hash of a row over all columns, in which equal rows agree and others hardly ever do.

    DuckDB's `hash` runs neighbouring lists together and takes NULL for an empty list, so lengths are hashed beside
    lists, and what is nested deeper is hashed as its text.
    """
    parts: list[str] = []
    for name, kind in columns.items():
        column = quoted(name)
        spelled = str(kind)
        if spelled.endswith("[]") and not spelled.endswith("[][]") and "(" not in spelled:
            parts += [f"hash({column})", f"len({column})"]
        elif any(mark in spelled for mark in ("[", "STRUCT", "MAP", "UNION")):
            parts.append(f"hash(CAST({column} AS VARCHAR))")
        else:
            parts.append(f"hash({column})")
    return f"hash({', '.join(parts)})"


def _first_line(words: str) -> str:
    return words.strip().split("\n")[0]
