"""What every engine is given to do: the very same functions over the very same files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

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
    """Batch number -> its rows as an Arrow table; each call opens its file, as any engine's worker may call it.

    `latency_s` is waited once per call, before the read: the round trip to a store that is not this machine. That
    wait is the workload `remote`, simulated and labelled so; the read and the decoding after it are real.
    """

    def __init__(self, places: Sequence[Place], latency_s: float, without: Sequence[str] = ()) -> None:
        self.places, self.latency_s = list(places), latency_s
        self.columns = [name for name in pq.read_schema(self.places[0].path).names if name not in without]

    def __call__(self, index: int) -> pa.Table:
        """Read batch `index`, counted modulo the number of batches."""
        place = self.places[int(index) % len(self.places)]
        if self.latency_s > 0:
            time.sleep(self.latency_s)
        with pq.ParquetFile(place.path) as file:
            return file.read_row_group(place.row_group, columns=self.columns, use_threads=False)


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
            "labels": _floats(table, "label")[:, np.newaxis],
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
    """The functions of a workload over the files in `folder`."""
    without = () if name == "udf" else ("text",)
    read = Read(places_of(folder), 0.020 if name == "remote" else 0.0, without)
    return Work(name=name, read=read, transform=Tokenise() if name == "udf" else Transform())


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
