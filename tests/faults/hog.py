"""A pipeline whose items are large, under a limit of memory: `python -m tests.faults.hog ENGINE SPARE_MIB FOLDER`.

Every item is 8 MiB, made by a function; the trainer takes 80 of them at once and then pauses, as for a validation, in
which whoever prefetches fills what it may. ENGINE: `ours-threads`, `ours-processes`, `tf.data`, `dataloader`. Joins the
control group FOLDER ("-": RLIMIT_AS), limits it to what is used once all is imported and SPARE_MIB more, and prints one
JSON object. Run by `memory`, which also runs the peers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.memory_limit import MemoryGroup

ITEM_BYTES = 8 << 20
NUM_ITEMS = 480
BURST, PAUSE_S = 80, 0.4
WIDTH, AHEAD = 4, 128  # in each of two stages: 2 x 128 x 8 MiB = 2 GiB

Opened = Callable[[], Any]


def make(n: Any) -> np.ndarray:
    """An item: 8 MiB of its number."""
    return np.full(ITEM_BYTES, int(n) % 250, np.uint8)


def train(items: Iterable[Any], held: Callable[[], int]) -> tuple[int, int]:
    """How many came whole and in order, and the most bytes that were held ready for it."""
    most = count = 0
    for n, item in enumerate(items):
        array = np.asarray(item)
        assert array.nbytes == ITEM_BYTES
        assert array.flat[0] == array.flat[-1] == n % 250, f"item {n} is another"
        count += 1
        if count % BURST == 0:
            time.sleep(PAUSE_S)
        most = max(most, held())
    return count, most


@contextmanager
def ours(method: Any, num_items: int, budget_bytes: int) -> Iterator[tuple[Iterable[Any], Callable[[], int]]]:
    from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource

    half = budget_bytes // 2
    node = ElasticMapper(
        IterableSource(range(num_items)), make, WIDTH, method=method, max_concurrent=AHEAD, max_bytes=half, name="make"
    )
    with ElasticLoader(ElasticPrefetcher(node, AHEAD, max_bytes=half)) as loader:
        yield loader, lambda: sum(stage.bytes_ready for stage in loader.stats().stages)


@contextmanager
def tf_data(num_items: int) -> Iterator[tuple[Iterable[Any], Callable[[], int]]]:
    import tensorflow as tf

    made = tf.data.Dataset.range(num_items).map(
        lambda n: tf.numpy_function(make, [n], tf.uint8), num_parallel_calls=tf.data.AUTOTUNE
    )
    yield made.prefetch(tf.data.AUTOTUNE).as_numpy_iterator(), lambda: 0


class Made:
    """A dataset of such items."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, n: int) -> Any:
        import torch

        return torch.from_numpy(make(n))


@contextmanager
def dataloader(num_items: int) -> Iterator[tuple[Iterable[Any], Callable[[], int]]]:
    from torch.utils.data import DataLoader

    loader = DataLoader(Made(num_items), batch_size=None, num_workers=WIDTH, prefetch_factor=AHEAD // WIDTH)  # type: ignore[arg-type]
    yield loader, lambda: 0


def main(engine: str, spare_bytes: int, folder: Path | None) -> dict[str, Any]:
    """The run, and what it took."""
    group = MemoryGroup(folder)
    group.join()
    budget_bytes = spare_bytes * 3 // 8
    opened: Callable[[int], Any] = {
        "ours-threads": lambda count: ours("thread", count, budget_bytes),
        "ours-processes": lambda count: ours("process", count, budget_bytes),
        "tf.data": tf_data,
        "dataloader": dataloader,
    }[engine]
    with opened(2) as (items, held):  # imports, pools, the fork server
        train(items, held)
    before = group.used()
    group.limit(spare_bytes)
    with opened(NUM_ITEMS) as (items, held):
        began_s = time.monotonic()
        count, most = train(items, held)
        seconds = time.monotonic() - began_s
    return {
        "engine": engine, "limited_by": group.kind, "spare_bytes": spare_bytes, "budget_bytes": budget_bytes,
        "items": count, "most_admitted_bytes": most, "peak_bytes": group.peak() - before, "seconds": round(seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    _engine, _spare, _folder = sys.argv[1:]
    _found = main(_engine, int(_spare) << 20, None if _folder == "-" else Path(_folder))
    sys.stdout.write(json.dumps(_found) + "\n")
