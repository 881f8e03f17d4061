"""Random graphs, their sequential result, and the things that happen to them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lightning_intune.flow import (
    Batch,
    ElasticMapper,
    ElasticPrefetcher,
    Filter,
    IterableSource,
    Mix,
    Node,
    OnError,
    Repeat,
    Shuffle,
    Unbatch,
    Zip,
)
from lightning_intune.flow.node import walk
from lightning_intune.flow.stage import ElasticStage


def triple(n: Any) -> Any:
    if isinstance(n, list | tuple):
        return type(n)(triple(m) for m in n)
    return None if n is None else n * 3


def none_for_fives(n: Any) -> Any:
    if isinstance(n, list | tuple):
        return type(n)(none_for_fives(m) for m in n)
    return None if n is not None and n % 5 == 0 else n


def uneven_work(n: Any) -> Any:
    """Some items take much longer than their neighbours, as far as a thread is concerned."""
    if hash(str(n)) % 7 == 0:
        sum(range(20_000))
    return n


def passes(n: Any) -> bool:
    """For about two items of three, whatever they are made of."""
    return sum(map(ord, str(n))) % 3 > 0


def picky(n: Any) -> Any:
    """Fails for what `passes` turns down."""
    if not passes(n):
        raise ValueError(n)
    return n


FUNCTIONS: list[Callable[[Any], Any]] = [triple, none_for_fives, uneven_work]


@dataclass(frozen=True, kw_only=True)
class Step:
    kind: str
    width: int = 1
    fn: int = 0
    size: int = 1
    bound: int | None = None
    max_bytes: int | None = None
    every: int = 1
    prebatch: int | None = None
    seed: int = 0
    stop: str = "all_exhausted"


STEPS = st.one_of(
    st.builds(
        Step,
        kind=st.just("map"),
        width=st.integers(0, 6),
        fn=st.integers(0, len(FUNCTIONS) - 1),
        bound=st.none() | st.integers(1, 9),
        max_bytes=st.none() | st.integers(1, 400),
        every=st.integers(1, 4),
        prebatch=st.none() | st.integers(1, 5),
    ),
    st.builds(Step, kind=st.just("skip"), width=st.integers(0, 6), every=st.integers(1, 4)),
    st.builds(Step, kind=st.just("prefetch"), size=st.integers(1, 8), max_bytes=st.none() | st.integers(1, 400)),
    st.builds(Step, kind=st.just("batch-unbatch"), size=st.integers(1, 5)),
    st.builds(Step, kind=st.just("filter")),
    st.builds(Step, kind=st.just("shuffle"), size=st.integers(1, 40), seed=st.integers(0, 3)),
    st.builds(Step, kind=st.just("repeat"), size=st.integers(1, 3)),
    st.builds(Step, kind=st.just("zip"), size=st.integers(0, 150)),
    st.builds(
        Step,
        kind=st.just("mix"),
        size=st.integers(1, 30),
        seed=st.integers(0, 3),
        stop=st.sampled_from(["first_exhausted", "all_exhausted"]),
    ),
)
GRAPHS = st.lists(STEPS, min_size=1, max_size=4)


def build(steps: list[Step], num_items: int) -> Node[Any]:
    node: Node[Any] = IterableSource(range(num_items))
    for step in steps:
        if step.kind == "map":
            node = ElasticMapper(
                node,
                FUNCTIONS[step.fn],
                step.width,
                max_concurrent=step.bound,
                max_bytes=step.max_bytes,
                snapshot_frequency=step.every,
                prebatch=step.prebatch,
            )
        elif step.kind == "skip":
            everything = OnError(skip=True, max_share=1.0)
            node = ElasticMapper(node, picky, step.width, snapshot_frequency=step.every, on_error=everything)
        elif step.kind == "prefetch":
            node = ElasticPrefetcher(node, step.size, max_bytes=step.max_bytes)
        else:
            node = wrap(node, step)
    return node


def end(node: Node[Any], steps: list[Step]) -> None:
    """Nothing runs at a graph's end, unless it ends before its sources do: then somebody has to say so."""
    if any(step.kind == "zip" or (step.kind == "mix" and step.stop == "first_exhausted") for step in steps):
        node.shutdown()


def wrap(node: Node[Any], step: Step) -> Node[Any]:
    """The steps that are no stages: `other` numbers are negative, so that they can be told from the graph's own."""
    other = IterableSource(range(-step.size, 0))
    match step.kind:
        case "batch-unbatch":
            return Unbatch(Batch(node, step.size))
        case "filter":
            return Filter(node, passes)
        case "shuffle":
            return Shuffle(node, step.size, seed=step.seed)
        case "repeat":
            return Repeat(node, step.size)
        case "zip":
            return Zip(node, other)
        case "mix":
            return Mix([node, other], WEIGHTS, stop=step.stop, seed=step.seed)  # pyright: ignore[reportArgumentType]
    raise AssertionError(step.kind)


def sequential(steps: list[Step], num_items: int, epoch: int = 0) -> list[Any]:
    """What a plain program over lists makes of `steps`; a repeated part is worked through once for each pass."""
    if not steps:
        return list(range(num_items))
    *before, step = steps
    if step.kind == "repeat":
        passes_ = (sequential(before, num_items, epoch * step.size + number) for number in range(step.size))
        return [item for items in passes_ for item in items]
    items = sequential(before, num_items, epoch)
    match step.kind:
        case "map":
            return [FUNCTIONS[step.fn](item) for item in items]
        case "filter" | "skip":
            return [item for item in items if passes(item)]
        case "shuffle":
            return shuffled(items, step.size, step.seed, epoch)
        case "zip":
            return list(zip(items, range(-step.size, 0), strict=False))
        case "mix":
            return mixed([items, list(range(-step.size, 0))], step.seed, epoch, step.stop)
    return items


WEIGHTS = [3.0, 1.0]


def shuffled(items: list[Any], window: int, seed: int, epoch: int) -> list[Any]:
    out: list[Any] = []
    for number, begin in enumerate(range(0, len(items), window)):
        run = items[begin : begin + window]
        order = np.random.Generator(np.random.PCG64([seed, epoch, number])).permutation(len(run))
        out += [run[place] for place in order]
    return out


def mixed(sources: list[list[Any]], seed: int, epoch: int, stop: str) -> list[Any]:
    out: list[Any] = []
    left = [list(reversed(items)) for items in sources]
    weights = list(WEIGHTS)
    draws = [
        draw for block in range(20) for draw in np.random.Generator(np.random.PCG64([seed, epoch, block])).random(1024)
    ]
    for draw in draws:
        first = draw * sum(weights) < weights[0]
        chosen = 0 if first else 1
        if left[chosen]:
            out.append(left[chosen].pop())
        elif stop == "first_exhausted":
            return out
        else:
            weights[chosen] = 0.0
        if sum(weights) == 0:
            return out
    raise AssertionError("the model has too few draws")


def rewidened(steps: list[Step], rng: random.Random) -> list[Step]:
    """The same graph at other widths, depths and bounds, which resume must not notice."""
    return [
        Step(**{**vars(step), "width": rng.randint(0, 6), "bound": rng.choice([None, 1, 4])})
        if step.kind in ("map", "skip")
        else step
        for step in steps
    ]


@contextmanager
def resize_storm(node: Node[Any], seed: int) -> Iterator[None]:
    """Another thread turns every knob as fast as it can until the block ends."""
    rng, stop = random.Random(seed), threading.Event()
    stages = [stage for stage in walk(node) if isinstance(stage, ElasticStage)]

    def turn() -> None:
        while not stop.is_set():
            for stage in stages:
                stage.resize(rng.randint(stage.bounds.low, min(64, stage.bounds.high)))
            stop.wait(rng.random() * 0.002)

    thread = threading.Thread(target=turn, name="resize-storm")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
