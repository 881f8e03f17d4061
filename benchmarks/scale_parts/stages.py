"""What a graph costs as it gets longer, wider, and its items larger."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, final

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.overhead import same
from lightning_intune.flow import ElasticMapper, IterableSource, Node

STAGES = (1, 2, 4, 8, 16)
WIDTHS = (1, 4, 16, 64, 256)
LATENCY_S = 0.02
ITEM_BYTES = (1, 1 << 10, 32 << 10, 1 << 20, 16 << 20, 64 << 20)


def stages(num_items: int) -> dict[str, dict[str, float]]:
    """By number of stages of width 1 that do nothing: CPU and wall microseconds for an item to pass all of them."""
    found: dict[str, dict[str, float]] = {}
    for count in STAGES:
        node: Node[int] = IterableSource(range(num_items))
        for number in range(count):
            node = ElasticMapper(node, same, 1, name=f"stage{number}")
        cost = _drained(node, num_items // 10, num_items - num_items // 10)
        found[str(count)] = {name: value * 1e6 for name, value in cost.items()}
    return found


def widths(seconds: float) -> dict[str, dict[str, float]]:
    """By width of one stage that waits 20 ms an item: items/s, their share of width / 20 ms, CPU microseconds each."""
    found: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        num_items = max(2, int(width * seconds / LATENCY_S))
        node = ElasticMapper(
            IterableSource(range(num_items + 2 * width)), _wait, width, max_workers=max(WIDTHS), name="wait"
        )
        cost = _drained(node, width, num_items)
        rate = 1.0 / cost["wall"]
        found[str(width)] = {
            "items_per_s": rate,
            "share_of_ideal": rate * LATENCY_S / width,
            "cpu_us_per_item": cost["cpu"] * 1e6,
        }
    return found


def item_sizes(total_bytes: int) -> dict[str, dict[str, float]]:
    """By bytes of the array that an item is: CPU microseconds to make and pass it on, and MB/s, by method.

    Threads pass the array itself on, processes through shared memory.
    """
    found: dict[str, dict[str, float]] = {}
    for size in ITEM_BYTES:
        found[str(size)] = entry = {}
        num_items = int(min(2000, max(12, total_bytes // size)))
        for method in ("thread", "process"):
            node = ElasticMapper(
                IterableSource(range(num_items + 8)),
                Make(size),
                1,
                method=method,  # type: ignore[arg-type]
                name="make",
            )
            cost = _drained(node, 8, num_items)
            entry[f"{method}_cpu_us"] = cost["cpu"] * 1e6
            entry[f"{method}_mb_per_s"] = size / cost["wall"] / 1e6
    return found


@final
class Make:
    """An array of so many bytes, written once."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __call__(self, item: int) -> npt.NDArray[np.uint8]:
        """An array full of the item's last digits."""
        return np.full(self.num_bytes, item % 251, np.uint8)


def _wait(item: int) -> int:
    time.sleep(LATENCY_S)
    return item


def _drained(node: Node[Any], warm_up: int, num_items: int) -> dict[str, float]:
    """CPU and wall seconds per item at the consumer, after the warm-up; threads and processes end."""
    items = iter(node)
    try:
        for _ in range(warm_up):
            next(items)
        wall_s, own_s, lanes_s = time.perf_counter(), time.process_time(), _lanes_cpu_s()
        for _ in range(num_items):
            next(items)
        cpu_s = time.process_time() - own_s + _lanes_cpu_s() - lanes_s
        return {"wall": (time.perf_counter() - wall_s) / num_items, "cpu": cpu_s / num_items}
    finally:
        node.shutdown()


def _lanes_cpu_s() -> float:
    """CPU seconds of the worker processes, in the kernel's ticks of 10 ms."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
