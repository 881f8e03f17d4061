"""Faults of the stages' functions, lanes, clocks and widths."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import psutil

from lightning_intune.control.budget import Budget
from lightning_intune.errors import StageError
from lightning_intune.flow import (
    Batch,
    ElasticLoader,
    ElasticMapper,
    ElasticPrefetcher,
    IterableSource,
    Node,
    OnError,
    Shuffle,
    Unbatch,
    retry,
)
from lightning_intune.flow.lanes.lane import LaneDiedError
from tests.faults import functions
from tests.faults.functions import WORST
from tests.faults.ledger import Trial
from tests.faults.runner import Scenario
from tests.flow.graphs import resize_storm

SKIP = OnError(skip=True, max_share=1.0)


@contextlib.contextmanager
def opened(node: Node[Any]) -> Iterator[ElasticLoader[Any]]:
    """The end of a graph, shut down however the block ends."""
    with ElasticLoader(node) as loader:
        yield loader


def mapped(fn: Callable[[Any], Any], num_items: int, width: int, **options: Any) -> ElasticMapper[Any]:
    return ElasticMapper(IterableSource(range(num_items)), fn, width, name=fn.__name__, **options)


def resizes(trial: Trial) -> None:
    count, rng = trial.rng.randint(200, 800), trial.rng
    node = mapped(functions.uneven, count, 2, max_concurrent=rng.choice([None, 3, 9]))
    node = ElasticPrefetcher(ElasticMapper(node, functions.same, 2, prebatch=rng.choice([None, 4])), 4)
    with opened(node) as loader, resize_storm(node, rng.randint(0, 9999)):
        trial.came(range(count), loader)
    trial.inject()


def unordered_resizes(trial: Trial) -> None:
    count = trial.rng.randint(200, 600)
    node = mapped(functions.uneven, count, 2, in_order=False)
    with opened(node) as loader, resize_storm(node, trial.rng.randint(0, 9999)):
        trial.came(range(count), loader, in_order=False)
    trial.inject()


def resized_processes(trial: Trial) -> None:
    node = mapped(functions.uneven, 150, 1, method="process", max_workers=3)
    with opened(node) as loader, resize_storm(node, trial.rng.randint(0, 9999)):
        trial.came(range(150), loader)
    trial.inject()


def killed_processes(trial: Trial) -> None:
    out, count = list[int](), 200
    with opened(mapped(functions.uneven, count, 2, method="process", prebatch=1)) as loader:
        for n in loader:
            out.append(n)
            if len(out) % 25 == 0:
                kill_one_worker(trial)
    trial.came(range(count), out)


def kill_one_worker(trial: Trial) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it may have gone between listing and killing
        children = [child for child in psutil.Process().children(recursive=True) if not child.children()]
        trial.rng.choice(children).kill()
        trial.inject()


def cuts(trial: Trial) -> None:
    """Resume after resume, at other widths, orders kept; in front of nodes that pull again what they had."""
    rng, count, state, out = trial.rng, 300, None, list[int]()
    behind = rng.choice(["map", "unbatch", "shuffle"])
    for cut in [rng.randint(0, 90) for _ in range(4)] + [None]:
        node: Node[Any] = mapped(functions.uneven, count, rng.randint(0, 4))
        node = {"map": node, "unbatch": Unbatch(Batch(node, 7)), "shuffle": Shuffle(node, 32, seed=1)}[behind]
        node = ElasticMapper(node, functions.same, rng.randint(0, 4), snapshot_frequency=rng.randint(1, 5))
        node.reset(state)
        out += islice(node, cut)
        state = json.loads(json.dumps(node.state_dict()))
        node.shutdown()
        trial.inject()
    trial.came(range(count), out, in_order=behind != "shuffle")


def raising(trial: Trial) -> None:
    for method, width in (("thread", 0), ("thread", 3), ("process", 2)):
        out = list[int]()
        node = ElasticMapper(mapped(functions.raises, 100, width, method=method), functions.same, 2, name="behind")
        with opened(node) as loader, trial.raises(ValueError, "stage 'raises'", f"item {WORST} failed", item=WORST):
            out.extend(loader)
        trial.came(range(WORST), out)
        trial.inject()


def skipping(trial: Trial) -> None:
    rng, count, state, out = trial.rng, 200, None, list[int]()
    num_skipped = 0
    for cut in [rng.randint(0, 80), rng.randint(0, 80), None]:
        policy = retry(1, 0.0, then=SKIP)
        node = mapped(functions.sometimes_raises, count, rng.randint(0, 3), on_error=policy)
        node.reset(state)
        out += islice(node, cut)
        state = node.state_dict()
        num_skipped += node.stats().num_skipped
        node.shutdown()
    assert state is not None
    trial.inject(count // 10)
    trial.came([n for n in range(count) if n % 10 != 7], out)
    trial.check(
        state["skipped"] == num_skipped == count // 10, f"miscounted: {state['skipped']}, {num_skipped} skipped"
    )


def hanging(trial: Trial) -> None:
    out = list[int]()
    with (
        opened(mapped(functions.hangs, 60, 2, method="process", timeout_s=1.0)) as loader,
        trial.raises(TimeoutError, "stage 'hangs'", item=WORST),
    ):
        out.extend(loader)
    trial.came(range(WORST), out)
    with opened(mapped(functions.hangs, 60, 2, method="process", timeout_s=1.0, on_error=SKIP)) as loader:
        trial.came([n for n in range(60) if n != WORST], loader)
    trial.inject(2)


def dying(trial: Trial) -> None:
    fn, words = trial.rng.choice(
        [(functions.kills_itself, "SIGKILL"), (functions.exits, "status 3"), (functions.sys_exits, "status 4")]
    )
    out = list[int]()
    with (
        opened(mapped(fn, 60, 2, method="process")) as loader,
        trial.raises(LaneDiedError, f"stage '{fn.__name__}'", words, item=WORST),
    ):
        out.extend(loader)
    trial.came(range(WORST), out)
    trial.inject()


def unpicklable(trial: Trial) -> None:
    out = list[int]()
    with (
        opened(mapped(functions.cannot_leave, 60, 2, method="process")) as loader,
        trial.raises(StageError, "cannot leave the worker process", item=WORST),
    ):
        out.extend(loader)
    trial.came(range(WORST), out)
    trial.inject()


def huge_results(trial: Trial) -> None:
    out = list[int]()
    with opened(mapped(functions.huge, 24, 2, method="process", max_bytes=64 << 20)) as loader:
        for n, array in enumerate(loader):
            trial.check(bool((array == n).all()), f"changed: item {n}")
            out.append(int(array[0]))
    trial.came(range(24), out)
    trial.inject(6)


def leaking(trial: Trial) -> None:
    """What the function leaks in its process goes with it."""
    with opened(mapped(functions.leaks, 60, 2, method="process")) as loader:
        trial.came(range(60), loader)
    trial.inject(60)


def jumping_clock(trial: Trial) -> None:
    rng, jumps = random.Random(trial.seed), itertools.count()

    def clock() -> float:
        if next(jumps) % 7 == 0:
            trial.inject()
            return time.perf_counter() + rng.uniform(-1e6, 1e6)
        return time.perf_counter()

    node = mapped(functions.uneven, 300, 2, clock=clock, max_bytes=200)
    node = ElasticMapper(node, functions.same, 2, clock=clock, snapshot_frequency=3)
    with opened(node) as loader, resize_storm(node, rng.randint(0, 9999)):
        trial.came(range(300), loader)


def changed_affinity(trial: Trial) -> None:
    """The CPUs are taken away while it runs; the budget says so, and the data does not notice."""
    before, budget, out = os.sched_getaffinity(0), Budget(), list[int]()
    try:
        with opened(mapped(functions.uneven, 400, 3)) as loader:
            for n in loader:
                out.append(n)
                if len(out) % 100 == 0:
                    cpus = {min(before)} if len(out) % 200 else before
                    os.sched_setaffinity(0, cpus)
                    trial.check(budget.read().allowed_cpus == len(cpus), "the budget missed a change of affinity")
                    trial.inject()
    finally:
        os.sched_setaffinity(0, before)
    trial.came(range(400), out)


def changed_limits(trial: Trial) -> None:
    """Quota and memory limit of the control group change; the budget follows within four readings."""
    group = trial.folder / "cgroup" / "job"
    group.mkdir(parents=True)
    (trial.folder / "proc" / "self").mkdir(parents=True)
    (trial.folder / "proc" / "self" / "cgroup").write_text("0::/job\n")
    (trial.folder / "proc" / "self" / "status").write_text("Cpus_allowed_list:\t0-31\n")
    (trial.folder / "cgroup" / "cgroup.controllers").write_text("cpu memory")
    limits = [(4.0, 8 << 30), (0.5, 1 << 30), (16.0, 64 << 30)]
    group.joinpath("cpu.max").write_text("100000 100000")
    group.joinpath("memory.max").write_text(str(2 << 30))
    budget = Budget(proc_root=trial.folder / "proc", cgroup_root=trial.folder / "cgroup", memory_share=1.0)
    budget.read()
    for cpus, memory in limits:
        group.joinpath("cpu.max").write_text(f"{int(cpus * 100000)} 100000")
        group.joinpath("memory.max").write_text(str(memory))
        reading = [budget.read() for _ in range(4)][-1]  # what hardly ever changes is read every fourth time
        trial.check(reading.cpus == cpus, f"the budget says {reading.cpus} CPUs, the quota {cpus}")
        trial.check(reading.memory_limit_bytes <= memory, f"the budget says {reading.memory_limit_bytes} bytes")
        trial.inject()


SCENARIOS = (
    Scenario(name="random resizes", promise="every item once, in order", run=resizes),
    Scenario(name="random resizes, unordered", promise="every item once", run=unordered_resizes),
    Scenario(name="random resizes, processes", promise="every item once, in order", run=resized_processes),
    Scenario(name="kill -9 of worker processes", promise="costs no item", run=killed_processes),
    Scenario(name="cut and resumed at other widths", promise="continues with the next item", run=cuts),
    Scenario(name="a function raises", promise="named, after all items before it", run=raising),
    Scenario(name="failures retried, then skipped", promise="left out and counted once, over resumes", run=skipping),
    Scenario(name="a function hangs", promise="named or skipped, its process killed", run=hanging),
    Scenario(name="a function ends its interpreter", promise="named after three tries", run=dying),
    Scenario(name="an unpicklable result", promise="named, alone", run=unpicklable),
    Scenario(name="huge results", promise="unchanged; their memory goes back", run=huge_results),
    Scenario(name="a function leaks", promise="its process takes it along", run=leaking),
    Scenario(name="the clock jumps", promise="every item once, in order", run=jumping_clock),
    Scenario(name="affinity changes", promise="seen by the budget, not by the data", run=changed_affinity),
    Scenario(name="quota and memory limit change", promise="seen within four readings", run=changed_limits),
)
