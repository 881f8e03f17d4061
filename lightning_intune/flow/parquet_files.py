"""The Parquet files behind a path, a folder, a glob or a list: found, and their footers read."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from lightning_intune.errors import ConfigError
from lightning_intune.flow.filesystems import is_local
from lightning_intune.flow.partitions import partition_guarantee, partition_texts, partition_types

_FOOTER_THREADS = 8
_HIDDEN = ("_", ".")  # Spark's and Hadoop's markers, and files still being written


@final
@dataclass(frozen=True, kw_only=True)
class ParquetFile:
    """What one file's footer says of it."""

    path: str
    fragment: ds.ParquetFileFragment
    """Arrow's view of the footer; the file behind it is closed."""
    schema: pa.Schema
    """Its columns, those that stand in the names of its folders included."""

    @property
    def about(self) -> Mapping[bytes, bytes]:
        """What our own commands have written into the footer."""
        about = self.fragment.metadata.metadata or {}
        return {key: value for key, value in about.items() if key.startswith(b"lightning_intune.")}

    @property
    def from_folders(self) -> tuple[str, ...]:
        """Columns that stand in the names of its folders."""
        return tuple(name for name in self.schema.names if name not in self.fragment.physical_schema.names)

    def num_entries(self, column: str) -> int | None:
        """Entries of a column of lists of single values, in all rows together; a list without any counts as one.

        None where the file has no such column.
        """
        footer = self.fragment.metadata
        paths = [footer.schema.column(leaf).path for leaf in range(footer.num_columns)]
        inner = [path.removeprefix(f"{column}.") if path.startswith(f"{column}.") else "" for path in paths]
        leaves = [leaf for leaf, path in enumerate(inner) if path.count(".") == 1]  # as in `list.element`
        if len(leaves) != 1:
            return None
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        return sum(group.column(leaves[0]).num_values for group in groups)

    def row_groups(self, keep: pc.Expression | None, schema: pa.Schema) -> list[tuple[int, int]]:
        """(number, rows) of its non-empty row groups, less those whose statistics rule `keep` out."""
        part = self.fragment if keep is None else self.fragment.subset(keep, schema=schema)
        return [(group.id, group.num_rows) for group in part.row_groups if group.num_rows > 0]


def find_files(paths: Sequence[str], filesystem: fs.FileSystem) -> list[str]:
    """The files meant by `paths`: folders searched through, globs (`*`, `?`, `[...]`, `**`) expanded.

    Order: as listed, and sorted within a folder or a glob. Names that begin with `_` or `.` are skipped in folders.
    ConfigError for a path that is not there, a folder or glob that holds no file, a file that is meant twice.
    """
    files = [file for path in paths for file in _find(path, filesystem)]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise ConfigError(
            f"ParquetSource: '{twice[0]}' is meant by more than one of the paths, and its rows would come twice. "
            "Name each file once."
        )
    return files


def read_footers(paths: Sequence[str], filesystem: fs.FileSystem) -> list[ParquetFile]:
    """What each footer says; several are read at a time, as remote storage answers slowly.

    ConfigError names the first file that is not readable Parquet.
    """
    types = partition_types(paths)
    if len(paths) <= _FOOTER_THREADS:
        return [_footer(path, filesystem, types) for path in paths]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda path: _footer(path, filesystem, types), paths))


def common_schema(files: Sequence[ParquetFile]) -> pa.Schema:
    """One schema for all files: every column of any of them, numbers widened where they differ.

    ConfigError names a column and two files whose types cannot be reconciled.
    """
    merged = files[0].schema
    for file in files[1:]:
        if file.schema.equals(merged):
            continue
        try:
            merged = pa.unify_schemas([merged, file.schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise _clash(files, file) from error
    return merged


def _find(path: str, filesystem: fs.FileSystem) -> list[str]:
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.File:
        return [path]
    if kind == fs.FileType.Directory:
        return _in_folder(path, filesystem)
    if glob.has_magic(path):
        return _matching(path, filesystem)
    hint = f"; a relative one is taken from '{os.getcwd()}'" if is_local(filesystem) else ""
    raise ConfigError(f"ParquetSource: there is no file or folder '{path}'. Correct the path{hint}.")


def _in_folder(folder: str, filesystem: fs.FileSystem) -> list[str]:
    base = folder.rstrip("/")
    files = _files_below(base, filesystem, recursive=True)
    shown = [file for file in files if not any(part.startswith(_HIDDEN) for part in file[len(base) :].split("/"))]
    if not shown:
        raise ConfigError(
            f"ParquetSource: the folder '{folder}' holds no file (names beginning with '_' or '.' do not count). "
            "Write the data first, or name another folder."
        )
    return shown


def _matching(pattern: str, filesystem: fs.FileSystem) -> list[str]:
    parts = pattern.split("/")
    num_plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base, wanted = "/".join(parts[:num_plain]), parts[num_plain:]
    root = base or ("/" if num_plain else ".")
    files: list[str] = []
    if filesystem.get_file_info(root).type == fs.FileType.Directory:
        prefix = base + "/" if num_plain else ""
        for file in _files_below(root, filesystem, recursive=len(wanted) > 1 or "**" in wanted):
            below = file.removeprefix("./") if root == "." else file[len(base) :].lstrip("/")
            if _matches(below.split("/"), wanted):
                files.append(prefix + below)
    if not files:
        raise ConfigError(
            f"ParquetSource: the pattern '{pattern}' matches no file. Correct it, or write the files first."
        )
    return files


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether path parts fit pattern parts, where `**` stands for any number of folders."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return _matches(parts, wanted[1:] or ["*"]) or (len(parts) > 1 and _matches(parts[1:], wanted))
    if not parts or (parts[0].startswith(".") and not wanted[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _files_below(folder: str, filesystem: fs.FileSystem, *, recursive: bool) -> list[str]:
    """Their paths, beginning as `folder` does: fsspec's local files come with absolute paths for a relative one."""
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=recursive))
    files = [info.path for info in found if info.type == fs.FileType.File]
    base, absolute = folder.rstrip("/"), os.path.abspath(folder)
    is_foreign = not os.path.isabs(folder) and all(file.startswith(f"{absolute}/") for file in files)
    return sorted(base + file[len(absolute) :] for file in files) if is_foreign else sorted(files)


def _footer(path: str, filesystem: fs.FileSystem, types: Mapping[str, pa.DataType]) -> ParquetFile:
    try:
        with filesystem.open_input_file(path) as source:
            own = set(pq.read_schema(source).names)  # a column that the file itself holds is what the file says
            from_folders = {name: types[name] for name in partition_texts(path) if name not in own}
            known = partition_guarantee(path, from_folders)
            fragment = ds.ParquetFileFormat().make_fragment(source, partition_expression=known)
            fragment.ensure_complete_metadata()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last: a column's damaged name
        raise ConfigError(
            f"ParquetSource: '{path}' is not a readable Parquet file ({error}). Leave it out of the paths, or write "
            "it anew."
        ) from error
    schema = fragment.physical_schema.remove_metadata()
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name, count in Counter(schema.names).items() if count > 1)
        raise ConfigError(
            f"ParquetSource: '{path}' has two columns named '{twice}', and a name must mean one. Write it anew."
        )
    for name, kind in from_folders.items():
        schema = schema.append(pa.field(name, kind))
    return ParquetFile(path=path, fragment=fragment, schema=schema)


def _clash(files: Sequence[ParquetFile], later: ParquetFile) -> ConfigError:
    """The error for the first column of `later` that fits no type it has in an earlier file."""
    for field in later.schema:
        for earlier in files[: files.index(later)]:
            if field.name not in earlier.schema.names:
                continue
            other = earlier.schema.field(field.name)
            try:
                pa.unify_schemas([pa.schema([other]), pa.schema([field])], promote_options="permissive")
            except pa.ArrowException:
                return ConfigError(
                    f"ParquetSource: column '{field.name}' holds {other.type} in '{earlier.path}' and {field.type} in "
                    f"'{later.path}', and no one type holds both. Write one of the files anew, or leave it out."
                )
    return ConfigError(
        f"ParquetSource: the column types of '{later.path}' and the {files.index(later)} files before it have no "
        "common type, though any two do. Write the files anew with one schema."
    )
