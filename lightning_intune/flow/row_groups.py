"""A row group of a Parquet file: its cheap description, and the function that reads it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from lightning_intune.flow.filesystems import is_local
from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.partitions import partition_texts, partition_value

_ENCODABLE = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_MAX_FOOTERS = 64
_Footer = tuple[pq.FileMetaData, frozenset[str], list[str]]  # the names of its columns, the leaves to keep encoded


@final
@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Where some rows are. It is small, picklable, and all that a random transform may be keyed by."""

    path: str
    row_group: int
    """Its number within the file, from 0."""
    num_rows: int
    """Rows in the file, before any filter."""
    start: int = 0
    """With `stop`: which of its rows are meant, where ranks share a row group."""
    stop: int | None = None
    """None: to its end."""
    index: int
    """Its number in the whole data set, from 0, the same on every rank and in every epoch."""
    epoch: int = 0
    seed: int = 0
    """The source's seed."""


class RowGroupReadError(OSError):
    """A row group could not be read; the text names file and row group, `__cause__` is what pyarrow said."""


@final
@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Which rows to keep: those for which `expression`, over the columns `fields`, is true (not null)."""

    expression: pc.Expression
    fields: tuple[pa.Field, ...]


@final
class ReadRowGroup:
    """A function from a `RowGroup` to its rows as a `pa.Table`. Picklable, and safe in several threads.

    Columns come as `schema` says, in that order: cast where a file holds another type; where it has no such column,
    what its folders' names say (`day=2026-01-01`), else its value in `defaults`, else null. With `keep` only rows for
    which it is true come. With `shuffle` their order is drawn from the descriptor's (seed, epoch, index), never from
    the worker's. With `dictionaries` columns of strings, and of lists of them, stay dictionary-encoded as they are in
    the file, which spares decoding them.

    The read is single-threaded, so that its CPU time is metered where it is spent. `pre_buffer` fetches the column
    chunks in few large ranges on Arrow's I/O threads: good for remote storage, and the default there; on a local disk
    the calling thread reads by itself.
    """

    def __init__(
        self,
        schema: pa.Schema,
        *,
        filesystem: fs.FileSystem | None = None,
        keep: RowFilter | None = None,
        defaults: Mapping[str, Any] | None = None,
        shuffle: bool = False,
        dictionaries: bool = False,
        pre_buffer: bool | None = None,
    ) -> None:
        self._schema, self._filesystem = schema, filesystem or fs.LocalFileSystem()
        self._keep, self._defaults, self._shuffle = keep, dict(defaults or {}), shuffle
        present = set(schema.names)
        extra = [] if keep is None else [field for field in keep.fields if field.name not in present]
        self._read_schema = pa.schema([*schema, *extra])  # a filter may look at columns that nobody else wants
        coded = {field.name: _coded(field.type) for field in schema if dictionaries}
        self._dictionaries = {name: kind for name, kind in coded.items() if kind is not None}
        self._pre_buffer = not is_local(self._filesystem) if pre_buffer is None else pre_buffer
        self._footers = _Footers(tuple(self._dictionaries))

    def __call__(self, row_group: RowGroup) -> pa.Table:
        """Read it. RowGroupReadError names file and row group when that fails."""
        try:
            table = self._read(row_group)
        except Exception as error:
            raise RowGroupReadError(
                f"row group {row_group.row_group} of '{row_group.path}' cannot be read "
                f"({type(error).__name__}: {error}). The file was readable when the source was made: "
                "see whether it is damaged, was replaced, or went away."
            ) from error
        if row_group.start > 0 or row_group.stop is not None:
            # Ranks that share a row group cut one and the same order, so that between them every row is read once.
            stop = row_group.num_rows if row_group.stop is None else row_group.stop
            return self._filtered(self._in_order(table, row_group).slice(row_group.start, stop - row_group.start))
        return self._in_order(self._filtered(table), row_group)

    def _in_order(self, table: pa.Table, row_group: RowGroup) -> pa.Table:
        if not self._shuffle:
            return table
        rng = np.random.Generator(np.random.PCG64([row_group.seed, row_group.epoch, row_group.index]))
        return table.take(pa.array(rng.permutation(table.num_rows)))

    def _filtered(self, table: pa.Table) -> pa.Table:
        return table if self._keep is None else table.filter(self._keep.expression).select(self._schema.names)

    def _read(self, row_group: RowGroup) -> pa.Table:
        with self._filesystem.open_input_file(row_group.path) as source:
            footer, present, leaves = self._footers.get(row_group.path) or self._footers.read(row_group.path, source)
            file = pq.ParquetFile(source, metadata=footer, read_dictionary=leaves, pre_buffer=self._pre_buffer)
            wanted = [name for name in self._read_schema.names if name in present]
            table = file.read_row_group(row_group.row_group, columns=wanted, use_threads=False)
        if wanted and table.num_rows != row_group.num_rows:
            raise ValueError(f"it holds {table.num_rows} rows, and its footer said {row_group.num_rows}")
        columns = [self._column(table, field, row_group) for field in self._read_schema]
        return pa.Table.from_arrays(columns, names=self._read_schema.names)

    def _column(self, table: pa.Table, field: pa.Field, row_group: RowGroup) -> pa.ChunkedArray:
        # Every row group's column must have one type, or tables could not be joined into batches.
        if field.name not in table.column_names:
            texts = partition_texts(row_group.path)
            is_in_path = field.name in texts
            value = partition_value(texts[field.name], field.type) if is_in_path else self._default(field)
            column = pa.chunked_array([pa.repeat(value, row_group.num_rows)])
        else:
            column = table.column(field.name)
        coded = self._dictionaries.get(field.name)
        if coded is not None and column.type == coded:
            return column
        plain = column if column.type == field.type else column.cast(field.type)
        if coded is None:
            return plain
        return plain.dictionary_encode() if isinstance(coded, pa.DictionaryType) else plain.cast(coded)

    def _default(self, field: pa.Field) -> pa.Scalar:
        return pa.scalar(self._defaults.get(field.name), field.type)


@final
class _Footers:
    """The last few files' footers: parsing one can cost as much as reading a row group. Any thread may use it."""

    def __init__(self, coded: tuple[str, ...]) -> None:
        self._coded = coded
        self._lock = renewed_lock(self, "_lock", threading.Lock)
        self._by_path: OrderedDict[str, _Footer] = OrderedDict()

    def get(self, path: str) -> _Footer | None:
        with self._lock:
            return self._by_path.get(path)

    def read(self, path: str, source: pa.NativeFile) -> _Footer:
        footer = pq.read_metadata(source)
        paths = [footer.schema.column(leaf).path for leaf in range(footer.num_columns)]
        leaves = [path for name in self._coded for path in paths if path == name or path.startswith(f"{name}.")]
        entry = footer, frozenset(footer.schema.to_arrow_schema().names), leaves
        with self._lock:
            self._by_path[path] = entry
            if len(self._by_path) > _MAX_FOOTERS:
                self._by_path.popitem(last=False)
        return entry

    def __reduce__(self) -> tuple[type[_Footers], tuple[tuple[str, ...]]]:
        return _Footers, (self._coded,)  # a process lane reads its own


def _coded(kind: pa.DataType) -> pa.DataType | None:
    """The type with its strings as numbers in a dictionary; None for what holds none."""
    if kind in _ENCODABLE:
        return pa.dictionary(pa.int32(), kind)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or kind.value_type not in _ENCODABLE:
        return None
    value = kind.value_field.with_type(pa.dictionary(pa.int32(), kind.value_type))
    return pa.list_(value) if pa.types.is_list(kind) else pa.large_list(value)
