"""What every engine is given to do: the very same functions over the very same files."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.peers_parts.data import NUM_SESSION_FEATURES
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch, InverseKeyedJaggedTensor, SessionsToBatch
from lightning_intune.flow.transform import ToBatch

NUM_IDS = 1 << 20
"""Rows of the embedding tables that ids are hashed into."""
Arrays = dict[str, npt.NDArray[Any]]


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where batch number `i` is stored: one row group."""

    path: str
    row_group: int


@final
class Read:
    """Batch number -> its rows as an Arrow table, in any engine's worker: each thread opens each file once.

    `latency_s` is waited once per call, before the read: the round trip to a store that is not this machine. That
    wait is the workload `remote`, simulated and labelled so; the read and the decoding after it are real.
    """

    def __init__(self, places: Sequence[Place], latency_s: float, without: Sequence[str] = ()) -> None:
        self.places, self.latency_s = list(places), latency_s
        self.columns = [name for name in pq.read_schema(self.places[0].path).names if name not in without]
        self._open = threading.local()

    def __call__(self, index: int) -> pa.Table:
        """Read batch `index`, counted modulo the number of batches."""
        place = self.places[int(index) % len(self.places)]
        if self.latency_s > 0:
            time.sleep(self.latency_s)
        file = self._open.__dict__.get(place.path)
        if file is None:
            file = self._open.__dict__[place.path] = pq.ParquetFile(place.path)
        return file.read_row_group(place.row_group, columns=self.columns, use_threads=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.places, self.latency_s, self.columns)


def _unpickled(places: list[Place], latency_s: float, columns: list[str]) -> Read:
    read = object.__new__(Read)  # nobody need read the schema again
    read.places, read.latency_s, read.columns = places, latency_s, columns
    read._open = threading.local()
    return read


class Transform:
    """Arrow table of B rows -> `dense` [B, 13], `values`, `lengths` [26 * B], `labels` [B, 1], as NumPy arrays.

    Dense columns become log1p with nulls as 0; ids are mixed by a multiplication and cut to `NUM_IDS`.
    """

    def __call__(self, table: pa.Table) -> Arrays:
        """The arrays of one batch."""
        names = table.column_names
        dense = np.stack([_floats(table, name) for name in names if name.startswith("dense")], axis=1)
        np.log1p(np.maximum(dense, 0, out=dense), out=dense)
        values: list[npt.NDArray[np.int64]] = []
        lengths: list[npt.NDArray[np.int32]] = []
        for name in names:
            if name.startswith(("session", "item")) and name != "session_id":
                ids, counts = self.ids(table.column(name).combine_chunks())
                values.append(_hashed(ids))
                lengths.append(counts)
        return {
            "dense": dense,
            "values": np.concatenate(values),
            "lengths": np.concatenate(lengths),
            "labels": _floats(table, "label")[:, np.newaxis].copy(),  # what Arrow gives is not to be written to
        }

    def ids(self, column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """All ids of a column, and how many each row has."""
        if pa.types.is_list(column.type):
            return column.flatten().to_numpy(), np.diff(column.offsets.to_numpy()).astype(np.int32, copy=False)
        return column.to_numpy(), np.ones(len(column), np.int32)


@final
class Tokenise(Transform):
    """As `Transform`, and every row's `text` is cut into words in pure Python, which holds the GIL."""

    def __call__(self, table: pa.Table) -> Arrays:
        """The arrays of one batch, with the words' hashes in `tokens` and their counts in `token_lengths`."""
        arrays = super().__call__(table)
        tokens: list[int] = []
        counts: list[int] = []
        for text in table.column("text").to_pylist():
            words = [word.strip(".,") for word in text.lower().split()]
            tokens.extend(_word_id(word) for word in words if word)
            counts.append(len(words))
        return arrays | {"tokens": np.array(tokens, np.int64), "token_lengths": np.array(counts, np.int32)}


@final
class Batched(Transform):
    """Table -> `Batch` by a function of this package, its tensors as arrays, which every engine can carry.

    From the session layout `values` and `lengths` hold first each session's features, one row per session, then each
    impression's; `inverse` [B] says whose session each impression is of.
    """

    def __init__(self, to_batch: Callable[[pa.Table], Batch]) -> None:
        self.to_batch = to_batch

    def __call__(self, table: pa.Table) -> Arrays:
        """The arrays of one batch."""
        batch = self.to_batch(table)
        sparse = batch.sparse
        arrays = {
            "dense": batch.dense.numpy(),
            "values": sparse.values().numpy(),
            "lengths": sparse.lengths().numpy(),
            "labels": batch.labels.numpy(),
        }
        if isinstance(sparse, InverseKeyedJaggedTensor):
            arrays["inverse"] = sparse.inverse_entries().numpy()
        return arrays


def _word_id(word: str) -> int:
    # FNV-1a letter by letter: what a hand-written tokeniser does, and the same in every process.
    value = 2166136261
    for letter in word:
        value = ((value ^ ord(letter)) * 16777619) & 0xFFFFFFFF
    return value % NUM_IDS


@final
class Fused:
    """The whole work in one call, for engines that have one parallel stage."""

    def __init__(self, work: Work, *, tensors: bool) -> None:
        self.work, self.tensors = work, tensors

    def __call__(self, index: int) -> dict[str, Any]:
        """Batch `index`, as tensors or arrays."""
        arrays = self.work.transform(self.work.read(index))
        return as_tensors(arrays) if self.tensors else arrays


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """A workload's stage functions."""

    name: str
    read: Read
    transform: Transform

    @property
    def arrays(self) -> list[tuple[str, Any]]:
        """Names and NumPy types of what `transform` returns, in its order: tf.data has to be told."""
        names = [("dense", np.float32), ("values", np.int64), ("lengths", np.int32), ("labels", np.float32)]
        if isinstance(self.transform, Tokenise):
            names += [("tokens", np.int64), ("token_lengths", np.int32)]
        if self.name == "sessions_layout":
            names += [("inverse", np.int64)]
        return names


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The same memory as tensors: what a training step takes, and what DataLoader ships fastest between processes."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def num_rows(batch: dict[str, Any]) -> int:
    """Rows of a batch of any engine."""
    return len(batch["labels"])


def places_of(folder: Path) -> list[Place]:
    """Every row group under `folder`, in the order of the file names."""
    return [
        Place(path=str(path), row_group=number)
        for path in sorted(folder.glob("*.parquet"))
        for number in range(pq.read_metadata(path).num_row_groups)
    ]


def make_work(name: str, folder: Path) -> Work:
    """The functions of a workload over the files in `folder`; `sessions_layout` is `sessions` from the other layout."""
    layout = "sessions" if name == "sessions_layout" else "rows"
    places = places_of(folder / layout)
    if name.startswith("sessions"):
        names = pq.read_schema(places[0].path).names
        schema = _schema(names)
        others = [column for column in names if column not in schema.columns]
        level = [column for column in names if column.startswith("session_")]
        by_layout = SessionsToBatch(schema, session_level=level) if layout == "sessions" else ToBatch(schema)
        return Work(name=name, read=Read(places, 0.0, others), transform=Batched(by_layout))
    read = Read(places, 0.020 if name == "remote" else 0.0, () if name == "udf" else ("text",))
    return Work(name=name, read=read, transform=Tokenise() if name == "udf" else Transform())


def _schema(names: Sequence[str]) -> Schema:
    ids = [name for name in names if name.startswith(("session_", "item_")) and name != "session_id"]
    return Schema(
        dense=[DenseFeature(name=name, transform="log1p") for name in names if name.startswith("dense")],
        sparse=[SparseFeature(name=name, num_embeddings=NUM_IDS) for name in ids],
        labels=["label"],
    )


def digest(batch: dict[str, Any], num_shared: int = NUM_SESSION_FEATURES) -> list[int]:
    """What a batch says, whatever its layout: of each impression the sum and number of its ids; dense and labels.

    `num_shared` features are the session's where the batch has an `inverse`.

    >>> rows = {"values": np.array([5, 6, 5, 6, 1, 2]), "lengths": np.array([2, 2, 1, 1], np.int32),
    ...         "dense": np.zeros((2, 1)), "labels": np.zeros((2, 1))}
    >>> session = rows | {"values": np.array([5, 6, 1, 2]), "lengths": np.array([2, 1, 1]), "inverse": np.array([0, 0])}
    >>> digest(rows) == digest(session, 1), digest(rows) == digest(rows | {"values": np.array([5, 6, 5, 7, 1, 2])})
    (True, False)
    """
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    num_rows, lengths = len(arrays["labels"]), arrays["lengths"].astype(np.int64)
    sums = np.add.reduceat(np.append(arrays["values"], 0), np.cumsum(lengths) - lengths) * (lengths > 0)
    num_sessions = int(arrays["inverse"].max()) + 1 if "inverse" in arrays else 0
    shared = num_shared * num_sessions
    found: list[int] = []
    for per_row in (sums, lengths):
        of_rows = per_row[shared:].reshape(-1, num_rows).sum(axis=0)
        if shared:
            of_rows = of_rows + per_row[:shared].reshape(-1, num_sessions).sum(axis=0)[arrays["inverse"]]
        found.append(zlib.crc32(np.ascontiguousarray(of_rows)))
    others = ("dense", "labels", "tokens", "token_lengths")
    return found + [zlib.crc32(np.ascontiguousarray(arrays[name])) for name in others if name in arrays]


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    column = table.column(name)
    if column.null_count:
        column = column.fill_null(0)
    return column.to_numpy().astype(np.float32, copy=False)


def _hashed(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    mixed = ids * np.int64(-7046029254386353131)  # 2**64 / golden ratio, as signed: wraps around
    mixed ^= mixed >> 32
    mixed &= NUM_IDS - 1
    return mixed
