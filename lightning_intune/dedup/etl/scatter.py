"""Puts rows of any number into another order in flat memory, through temporary files: one pass out, one back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_intune.dedup.etl.output_file import disk_full

Buckets = npt.NDArray[np.int64]


def scatter(
    batches: Iterable[pa.RecordBatch], bucket_of: Callable[[pa.RecordBatch], Buckets], num_buckets: int, folder: Path
) -> Iterator[pa.Table]:
    """The rows of bucket 0, then those of bucket 1, ...; within one as they came. Empty buckets are left out.

    All of `batches` is read before the first table comes. Each bucket's file is removed once it is read.
    """
    paths = [folder / f"{number}.arrow" for number in range(num_buckets)]
    try:
        _part(batches, bucket_of, paths)
    except OSError as error:
        raise disk_full(error, paths[0]) from error
    for path in paths:
        if not path.exists():
            continue
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_stream(file).read_all()
        path.unlink()
        yield table


def _part(batches: Iterable[pa.RecordBatch], bucket_of: Callable[[pa.RecordBatch], Buckets], paths: list[Path]) -> None:
    writers: dict[int, Any] = {}
    with ExitStack() as stack:
        for batch in batches:
            buckets = bucket_of(batch)
            order = np.argsort(buckets, kind="stable")
            ends = np.cumsum(np.bincount(buckets, minlength=len(paths)))
            rows = batch.take(pa.array(order))
            for number in np.unique(buckets).tolist():
                if number not in writers:
                    sink = stack.enter_context(pa.OSFile(str(paths[number]), "wb"))
                    options = pa.ipc.IpcWriteOptions(compression="zstd")
                    writers[number] = stack.enter_context(pa.ipc.new_stream(sink, batch.schema, options=options))
                begin = int(ends[number - 1]) if number else 0
                writers[number].write_batch(rows.slice(begin, int(ends[number]) - begin))
