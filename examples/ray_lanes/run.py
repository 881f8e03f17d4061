"""A stage of Ray actors, widened while it runs and hurt on purpose: `python -m examples.ray_lanes.run`.

Shows that items come out once and in order whatever happens to the actors. Takes about half a minute.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """What an actor makes of an item, and which process made it."""

    number: int
    total: float
    pid: int


def work(number: int) -> Part:
    """Some hundredths of a CPU second, on whichever machine the actor is."""
    values: npt.NDArray[np.float64] = np.random.default_rng(number).random(200_000)
    return Part(number=number, total=float(np.sort(values)[-1]), pid=os.getpid())


def run(*, num_items: int = 200, kill_at: int = 60, widen_at: int = 30) -> tuple[list[int], set[int]]:
    """The numbers in the order they came, and the processes they came from; one actor is killed on the way."""
    numbers: list[int] = []
    pids: set[int] = set()
    stage = ElasticMapper(IterableSource(range(num_items)), work, num_workers=1, method="ray", name="work")
    with ElasticLoader(stage) as loader:
        for part in loader:
            numbers.append(part.number)
            pids.add(part.pid)
            if part.number == widen_at:
                stage.resize(2)
            if part.number == kill_at and os.path.exists(f"/proc/{part.pid}"):  # on this machine
                os.kill(part.pid, signal.SIGKILL)
        print(f"{len(numbers)} items from {len(pids)} actors, {loader.stats().stages[0].cpu_s:.1f} CPU seconds in them")
    return numbers, pids


if __name__ == "__main__":
    import ray

    ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else 2, log_to_driver=False, logging_level="ERROR")
    try:
        numbers, pids = run()
        print("every item once, in order" if numbers == list(range(200)) else "ITEMS WERE LOST OR MOVED")
    finally:
        ray.shutdown()
