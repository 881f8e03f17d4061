"""A Parquet file that appears under its name only when it is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.errors import ConfigError

_SAMPLE_ROWS = 20_000
ZSTD_LEVEL = 3  # its window finds the repeats of wide sessions: half of level 1's bytes, for no more CPU


class DiskFullError(OSError):
    """No room was left for a file; the text says where, and how to go on."""


@final
class OutputFile:
    """Write tables to a temporary name beside `path`; `commit` renames it, leaving the `with` otherwise removes it.

    zstd. Dictionary encoding is chosen per column by trying both on the first rows: it halves some columns of strings
    and doubles clustered lists of ids. ConfigError if `path` exists; DiskFullError when the disk is full.
    """

    def __init__(self, path: Path, *, metadata: Mapping[bytes, bytes], row_group_rows: int = 65_536) -> None:
        if path.exists():
            raise ConfigError(f"'{path}' exists, and would be overwritten. Remove it, or name another output.")
        if not path.parent.is_dir():
            raise ConfigError(f"the folder '{path.parent}' does not exist. Create it, or name another output.")
        self._path, self._metadata, self._row_group_rows = path, dict(metadata), row_group_rows
        self._part = path.with_name(f".{path.name}.part")
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        """Append row groups."""
        try:
            if self._writer is None:
                self._writer = self._open(rows)
            self._writer.write_table(rows, row_group_size=self._row_group_rows)
        except OSError as error:
            raise disk_full(error, self._part) from error

    def close(self) -> Path:
        """Finish the temporary file, so that it can be read and verified; its path."""
        try:
            if self._writer is not None:
                self._writer.close()
            with open(self._part, "rb") as written:
                os.fsync(written.fileno())
        except OSError as error:
            raise disk_full(error, self._part) from error
        return self._part

    def commit(self) -> None:
        """Give the file its name. At least one table must have been written."""
        os.replace(self.close(), self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError:
                if error is None:  # else the first failure is the one to tell of
                    raise
        self._part.unlink(missing_ok=True)

    def _open(self, rows: pa.Table) -> pq.ParquetWriter:
        schema = rows.schema.with_metadata(self._metadata)
        return pq.ParquetWriter(
            self._part,
            schema,
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            use_dictionary=dictionary_columns(rows[:_SAMPLE_ROWS]),  # pyright: ignore[reportArgumentType] # the stub's
            write_page_index=True,
        )


def dictionary_columns(rows: pa.Table) -> list[str]:
    """The leaf columns (by Parquet path) that dictionary encoding makes smaller, by trying both.

    >>> kinds = np.random.default_rng(0).choice(["clicks", "orders", "carts"], 9000)
    >>> dictionary_columns(pa.table({"many": range(9000), "few": kinds}))
    ['few']
    """
    with_it, without = _encoded(rows, dictionary=True), _encoded(rows, dictionary=False)
    return [path for path, num_bytes in with_it.items() if num_bytes < without[path]]


def disk_full(error: OSError, path: Path) -> OSError:
    """`error`, as a DiskFullError if that is what it says."""
    if error.errno != errno.ENOSPC and "No space left" not in str(error):
        return error
    return DiskFullError(
        errno.ENOSPC,
        f"no space is left on the disk of '{path.parent}' ({error}). Free some, or name another place, "
        "then run the same command again.",
    )


def _encoded(rows: pa.Table, *, dictionary: bool) -> dict[str, int]:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", compression_level=ZSTD_LEVEL, use_dictionary=dictionary)
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    sizes: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            column = footer.row_group(group).column(index)
            sizes[column.path_in_schema] = sizes.get(column.path_in_schema, 0) + column.total_compressed_size
    return sizes
