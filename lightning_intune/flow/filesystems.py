"""Which filesystem a user's paths live on: local, an Arrow one, or anything that fsspec reaches."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs

from lightning_intune.errors import ConfigError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def locate(paths: Paths, filesystem: Any = None) -> tuple[list[str], fs.FileSystem]:
    """The paths as their one filesystem knows them, and that filesystem.

    `filesystem` may be Arrow's or fsspec's; without it, URIs (`s3://...`, `gs://...`, `memory://...`) name it, by
    Arrow if it can and else by fsspec, and other paths are local. ConfigError for paths on several filesystems, and
    for a scheme that nothing installed can read.

    >>> locate(["a.parquet", "b.parquet"])[0]
    ['a.parquet', 'b.parquet']
    """
    listed = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not listed:
        raise ConfigError("ParquetSource: paths is an empty list, so there is nothing to read. Name a file or folder.")
    if filesystem is not None:
        return listed, arrow_filesystem(filesystem)
    places = {_place(path) for path in listed}
    if len(places) > 1:
        raise ConfigError(
            f"ParquetSource: the paths lie on several filesystems ({', '.join(sorted(map(_shown, places)))}), and one "
            "source reads from one. Copy the files to one place, or make a source of each."
        )
    if places == {""}:
        return [os.path.expanduser(path) for path in listed], fs.LocalFileSystem()
    found = [_from_uri(uri) for uri in listed]
    return [path for path, _ in found], found[0][1]


def arrow_filesystem(filesystem: Any) -> fs.FileSystem:
    """Arrow's filesystem itself, or fsspec's in Arrow's clothes; ConfigError for anything else."""
    if isinstance(filesystem, fs.FileSystem):
        return filesystem
    if callable(getattr(filesystem, "open", None)) and callable(getattr(filesystem, "info", None)):
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    raise ConfigError(
        f"ParquetSource: filesystem={filesystem!r} is neither a pyarrow.fs.FileSystem nor an fsspec filesystem. "
        "Pass one of these, or leave it out and give URIs."
    )


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether reads go to this machine's own files."""
    return isinstance(filesystem, fs.LocalFileSystem)


def _place(path: str) -> str:
    """Scheme and host of a URI, or nothing."""
    scheme, mark, rest = path.partition("://")
    return f"{scheme}://{rest.split('/')[0]}" if mark else ""


def _from_uri(uri: str) -> tuple[str, fs.FileSystem]:
    # What a glob is made of need not be legal in a URI, so only the part before it is parsed.
    place = _place(uri)
    parts = uri[len(place) :].split("/")
    num_plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    head, tail = place + "/".join(parts[:num_plain]), parts[num_plain:]
    path, filesystem = _parse(head)
    return "/".join([path.rstrip("/"), *tail]) if tail else path, filesystem


def _shown(uri: str) -> str:
    """A URI as an error may show it: without the key and secret it may carry.

    >>> _shown("s3://key:secret@bucket/clicks")
    "'s3://***@bucket/clicks'"
    """
    return repr(re.sub(r"//[^/@]*@", "//***@", uri))


def _parse(uri: str) -> tuple[str, fs.FileSystem]:
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # a scheme that Arrow does not know
        return _parse_by_fsspec(uri)
    return path, filesystem


def _parse_by_fsspec(uri: str) -> tuple[str, fs.FileSystem]:
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"ParquetSource: nothing here can read {_shown(uri)} ({error}). Install the fsspec package for that scheme "
            "(s3fs, gcsfs, adlfs, ...), or pass `filesystem`."
        ) from error
    return path, arrow_filesystem(filesystem)
