"""What an item costs in a process lane, in CPU seconds of parent and children, against torchdata and DataLoader.

The functions do next to nothing: they hand back the item, or fill a new array with its number (a tensor or
array made once and handed out again would lie in shared memory already, which no real stage's does). The
Parquet stage reads and decodes. The consumer reads one byte of every page of a result, so that memory
which is mapped but not yet there is paid for. Ours and torchdata's pull from the same kind of node, an
IterableWrapper.

In `small` nobody is told a chunk size: the peers then send every item by itself, ours as many together as
take about a millisecond; `small.ours_one_by_one` is ours with `prebatch=1`. `small_chunked` is ours with
`prebatch=64`; its peers run as in `small`, and `small_chunked.torchdata_prebatch` gives torchdata the same
chunks. `lane_alone` is one lane in a loop with those chunks, without the engine around it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.nodes import IterableWrapper, ParallelMapper

from lightning_intune.flow.elastic import ElasticMapper
from lightning_intune.flow.lanes.process import ProcessLanePool

_NUM_WORKERS = 2
_PAGE = 4096
_MB = 1_000_000


@final
@dataclass(frozen=True, kw_only=True)
class Load:
    """One kind of item: the function that gives it, and how many items a measurement takes."""

    fn: Callable[[int], Any]
    num_items: int
    prebatch: int | None = None


def same(item: int) -> int:
    """A small item."""
    return item


@final
class Fresh:
    """A new array or tensor of `num_values` int64 for every item, filled with the item's number."""

    def __init__(self, num_values: int, make: Callable[[int, int], Any]) -> None:
        self.num_values, self.make = num_values, make

    def __call__(self, item: int) -> Any:
        return self.make(self.num_values, item)


@final
class ReadRows:
    """Reads one row group of a Parquet file into NumPy columns, single-threaded."""

    def __init__(self, path: Path, num_groups: int) -> None:
        self.path, self.num_groups = path, num_groups

    def __call__(self, item: int) -> dict[str, Any]:
        with pq.ParquetFile(self.path) as file:
            table = file.read_row_group(item % self.num_groups, use_threads=False)
        return {name: table.column(name).to_numpy() for name in table.column_names}


@final
class _Items(Dataset[Any]):
    def __init__(self, fn: Callable[[int], Any], count: int) -> None:
        self.fn, self.count = fn, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.fn(index)


def process_ratios(quick: bool) -> dict[str, Any]:
    """`{load: {peer: ratio, peer_spread: [min, max]}}`: the peer's CPU seconds per item over ours.

    Engines alternate within a round, ratios are formed within it, and the median of the rounds is given.
    """
    ratios: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, load in _loads(Path(folder), quick).items():
            rounds = [_round(load) for _ in range(2 if quick else 7)]
            ratios[name] = {"cpu_s_per_item": {key: _median([r[key] for r in rounds]) for key in rounds[0]}}
            for peer in rounds[0]:
                if peer != "ours":
                    values = [r[peer] / r["ours"] for r in rounds]
                    ratios[name][peer] = _median(values)
                    ratios[name][f"{peer}_spread"] = [min(values), max(values)]
    return ratios


def _round(load: Load) -> dict[str, float]:
    engines: dict[str, Callable[[Load, int], contextlib.AbstractContextManager[Iterator[Any]]]] = {
        "ours": partial(_ours, prebatch=load.prebatch),
        "torchdata": partial(_torchdata, prebatch=None),
        "dataloader": _dataloader,
    }
    if load.prebatch is not None:
        engines["lane_alone"] = partial(_lane_alone, size=load.prebatch)
        engines["torchdata_prebatch"] = partial(_torchdata, prebatch=load.prebatch)
    elif load.fn is same:
        engines["ours_one_by_one"] = partial(_ours, prebatch=1)
    return {engine: _cpu_s_per_item(open_engine, load) for engine, open_engine in engines.items()}


def _cpu_s_per_item(
    open_engine: Callable[[Load, int], contextlib.AbstractContextManager[Iterator[Any]]], load: Load
) -> float:
    warm = max(16, load.num_items // 3)  # until buffers and widths have settled
    gc.collect()
    with open_engine(load, warm + load.num_items + 1000) as items:
        for _ in range(warm):
            _look_at(next(items))
        before_s = _cpu_s()
        for _ in range(load.num_items):
            _look_at(next(items))
        return (_cpu_s() - before_s) / load.num_items


def _cpu_s() -> float:
    # The kernel's CPU clock of a process by its pid (clock_getcpuclockid(3)): nanoseconds, all threads.
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(time.clock_gettime((~child.pid << 3) | 2) for child in children)


def _look_at(item: Any) -> int:
    if isinstance(item, dict):
        return sum(_look_at(value) for value in item.values())
    if isinstance(item, torch.Tensor):
        item = item.numpy()
    return int(item.view(np.uint8)[::_PAGE].sum()) if isinstance(item, np.ndarray) else 0


@contextlib.contextmanager
def _ours(load: Load, count: int, *, prebatch: int | None) -> Generator[Iterator[Any]]:
    source: Any = IterableWrapper(range(count))
    mapper: ElasticMapper[Any] = ElasticMapper(source, load.fn, _NUM_WORKERS, method="process", prebatch=prebatch)
    try:
        mapper.reset()
        yield _pulled(mapper)
    finally:
        mapper.shutdown()


@contextlib.contextmanager
def _lane_alone(load: Load, count: int, *, size: int) -> Generator[Iterator[Any]]:
    """No engine: one lane in a loop. What it leaves of ours is the price of order, meters and resizing."""
    pool = ProcessLanePool(load.fn, name="lane", keep_spare=False)
    lane = pool.open()
    try:
        yield (item for first in range(0, count, size) for item in lane.run(list(range(first, first + size))))
    finally:
        lane.close()
        pool.close()


@contextlib.contextmanager
def _torchdata(load: Load, count: int, *, prebatch: int | None) -> Generator[Iterator[Any]]:
    source: Any = IterableWrapper(range(count))
    mapper: Any = ParallelMapper(source, load.fn, _NUM_WORKERS, method="process", prebatch=prebatch)
    mapper.reset()
    yield _pulled(mapper)
    del mapper
    gc.collect()  # it has no shutdown: its processes end when nobody refers to it


@contextlib.contextmanager
def _dataloader(load: Load, count: int) -> Generator[Iterator[Any]]:
    loader = DataLoader(_Items(load.fn, count), batch_size=None, num_workers=_NUM_WORKERS, collate_fn=_as_is)
    iterator: Any = iter(loader)
    yield iterator
    iterator._shutdown_workers()


def _as_is(item: Any) -> Any:
    return item


def _pulled(node: Any) -> Iterator[Any]:
    while True:
        yield node.next()


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _loads(folder: Path, quick: bool) -> dict[str, Load]:
    path = _write_rows(folder / "rows.parquet")
    size = partial(_count, quick)
    return {
        "small": Load(fn=same, num_items=size(1500, 6000)),
        "small_chunked": Load(fn=same, num_items=size(6000, 30_000), prebatch=64),
        "numpy_1mb": Load(fn=Fresh(_MB // 8, np.full), num_items=size(100, 600)),
        "numpy_10mb": Load(fn=Fresh(10 * _MB // 8, np.full), num_items=size(24, 90)),
        "numpy_40mb": Load(fn=Fresh(40 * _MB // 8, np.full), num_items=size(8, 45)),
        "torch_10mb": Load(fn=Fresh(10 * _MB // 8, _full_tensor), num_items=size(40, 90)),
        "parquet": Load(fn=ReadRows(path, 4), num_items=size(12, 60)),
    }


def _count(quick: bool, few: int, many: int) -> int:
    return few if quick else many


def _full_tensor(num_values: int, item: int) -> torch.Tensor:
    return torch.full((num_values,), item)


def _write_rows(path: Path) -> Path:
    """Four row groups of 15 MB: 40 columns of 47,000 float64, snappy, as Parquet writers do by default."""
    rng, num_rows = np.random.default_rng(0), 47_000
    table = pa.table({f"c{i}": rng.normal(size=4 * num_rows).round(3) for i in range(40)})
    pq.write_table(table, path, row_group_size=num_rows)
    return path


if __name__ == "__main__":
    import json
    import sys

    warnings.simplefilter("ignore")
    print(json.dumps(process_ratios("--quick" in sys.argv), indent=1))
