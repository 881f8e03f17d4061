"""Who takes part: for each engine its settings, and how one of them is opened as an endless stream of batches.

Each engine imports its library when it is opened, so that one that is not installed can be named and left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, final

from benchmarks.peers_parts.work import Fused, Work, as_tensors

Batches = Iterator[dict[str, Any]]
_RAY_STORE_BYTES = 4 << 30
WIDTHS = (2, 4, 8, 1)
"""What every shape is swept over, and beyond while the widest is the best: see `sweep`."""
ENDLESS = 1 << 40
"""Batches: more than any run takes. Each engine counts through them, and `Read` takes the number modulo the data."""


@final
@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to feed a trainer."""

    name: str
    package: str
    """What to install for it."""
    shapes: tuple[str, ...] = ()
    """Ways to lay it out, each of which has a width: `shape=width` is a setting."""
    fixed: tuple[str, ...] = ()
    """Settings without a width, such as its own tuner."""
    widths: tuple[int, ...] = WIDTHS
    open: Callable[[Work, str], AbstractContextManager[Batches]]


@contextmanager
def plain(work: Work, _: str) -> Generator[Batches]:
    """A loop in the trainer's own thread: what nothing costs."""
    fused = Fused(work, tensors=True)
    yield (fused(index) for index in count())


@contextmanager
def bare_threads(work: Work, setting: str) -> Generator[Batches]:
    """The same loop in several threads, the standard library's, which only hand their batches over in order."""
    fused, width = Fused(work, tensors=True), _number(setting)
    with ThreadPoolExecutor(width) as pool:
        waiting = deque(pool.submit(fused, index) for index in range(2 * width))

        def batches() -> Batches:
            for index in count(2 * width):
                waiting.append(pool.submit(fused, index))
                yield waiting.popleft().result()

        yield batches()


@contextmanager
def dataloader(work: Work, setting: str) -> Generator[Batches]:
    """The DataLoader of torch over a map-style data set of whole batches."""
    from torch.utils.data import DataLoader, Dataset

    class Batched(Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            self.fused = Fused(work, tensors=True)

        def __len__(self) -> int:
            return 1 << 20

        def __getitem__(self, index: int) -> dict[str, Any]:
            return self.fused(index)

    width = _number(setting)
    yield iter(DataLoader(Batched(), batch_size=None, num_workers=width))


@contextmanager
def torchdata(work: Work, setting: str) -> Generator[Batches]:
    """torchdata.nodes: one fused parallel stage, or one per function."""
    from torchdata.nodes import IterableWrapper, ParallelMapper, Prefetcher

    shape, width = setting.split("=")[0], _number(setting)
    node: Any = IterableWrapper(range(ENDLESS))
    if shape == "stages":
        node = ParallelMapper(node, work.read, num_workers=width, method="thread")
        node = ParallelMapper(node, _Then(work), num_workers=max(1, width // 2), method="thread")
    else:
        method = "process" if shape == "processes" else "thread"
        node = ParallelMapper(
            node,
            Fused(work, tensors=True),
            num_workers=width,
            method=method,
            multiprocessing_context="forkserver",  # fork hangs: Arrow has threads by now
        )
    yield iter(Prefetcher(node, 2))


@contextmanager
def spdl(work: Work, setting: str) -> Generator[Batches]:
    """SPDL's pipeline: a stage per function, threads of one pool; or a pool of processes for the fused work."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from spdl.pipeline import PipelineBuilder

    shape, width = setting.split("=")[0], _number(setting)
    builder = PipelineBuilder().add_source(range(ENDLESS))
    if shape == "processes":
        with ProcessPoolExecutor(width, mp_context=get_context("forkserver")) as pool:
            piped = builder.pipe(Fused(work, tensors=False), executor=pool, concurrency=width, output_order="input")
            pipeline = piped.add_sink(2).build(num_threads=2)
            with pipeline.auto_stop():
                yield map(as_tensors, pipeline.get_iterator())
        return
    if shape == "stages":
        builder = builder.pipe(work.read, concurrency=width, output_order="input")
        builder = builder.pipe(_Then(work), concurrency=max(1, width // 2), output_order="input")
    else:
        builder = builder.pipe(Fused(work, tensors=True), concurrency=width, output_order="input")
    pipeline = builder.add_sink(2).build(num_threads=2 * width)
    with pipeline.auto_stop():
        yield iter(pipeline.get_iterator())


@contextmanager
def grain(work: Work, setting: str) -> Generator[Batches]:
    """Grain's lazy data set: reading threads, or processes."""
    import grain.python as pygrain

    shape, width = setting.split("=")[0], _number(setting)
    source = pygrain.MapDataset.range(1 << 30).map(Fused(work, tensors=shape == "threads"))
    threads = 1 if shape == "processes" else width
    stream = source.to_iter_dataset(pygrain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if shape == "processes":
        stream = stream.mp_prefetch(pygrain.MultiprocessingOptions(num_workers=width, per_worker_buffer_size=2))
    yield iter(stream)


@contextmanager
def tfdata(work: Work, setting: str) -> Generator[Batches]:
    """tf.data over `numpy_function`, at a fixed parallelism or its own AUTOTUNE."""
    import tensorflow as tf

    names = [name for name, _ in work.arrays]
    kinds = [tf.as_dtype(kind) for _, kind in work.arrays]
    read = Fused(work, tensors=False)

    def arrays_of(number: int) -> list[Any]:
        found = read(number)
        return [found[name] for name in names]

    def load(index: Any) -> Any:
        return tf.numpy_function(arrays_of, [index], kinds)

    width = tf.data.AUTOTUNE if setting == "autotune" else _number(setting)
    stream = tf.data.Dataset.range(ENDLESS).map(load, num_parallel_calls=width, deterministic=True).prefetch(width)
    yield (dict(zip(names, arrays, strict=True)) for arrays in stream.as_numpy_iterator())


@contextmanager
def ray_data(work: Work, setting: str) -> Generator[Batches]:
    """Ray Data on a local cluster; a row of its data set is a batch of ours.

    Its tasks make 16 batches each: one task per batch cost it more than the batch, and a width given by `compute` keeps
    it from joining reading and mapping, so that it first made all numbers. Blocks of 64 MiB (its own default is 128)
    bring the first batch sooner.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    shape, width = setting.split("=")[0], _number(setting)
    ray.init(num_cpus=width + 1, include_dashboard=False, log_to_driver=False, object_store_memory=_RAY_STORE_BYTES)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars, context.target_max_block_size = False, 64 << 20
        context.execution_options.preserve_order = True  # as all engines do; actors change it otherwise
        fused = Fused(work, tensors=False)

        class Mapped:
            def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
                return fused(row["id"])

        numbers = ray.data.range(1 << 16, override_num_blocks=1 << 12)
        if shape == "actors":
            rows = numbers.map(Mapped, compute=ActorPoolStrategy(size=width))
        else:
            rows = numbers.map(Mapped().__call__)
        yield iter(rows.iter_rows())
    finally:
        ray.shutdown()


@final
class _Then:
    """The second stage, with tensors out of it."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, table: Any) -> dict[str, Any]:
        return as_tensors(self.work.transform(table))


def _number(setting: str) -> int:
    return int(setting.split("=")[1])


PEERS = (
    Engine(name="dataloader", package="torch", shapes=("workers",), open=dataloader),
    Engine(name="torchdata", package="torchdata", shapes=("threads", "stages", "processes"), open=torchdata),
    Engine(name="spdl", package="spdl-core", shapes=("threads", "stages", "processes"), open=spdl),
    Engine(name="grain", package="grain", shapes=("threads", "processes"), open=grain),
    Engine(name="tfdata", package="tensorflow-cpu", shapes=("threads",), fixed=("autotune",), open=tfdata),
    Engine(name="ray", package="ray", shapes=("tasks", "actors"), widths=(2, 4), open=ray_data),
)
PLAIN = Engine(name="plain", package="torch", fixed=("loop",), open=plain)
BARE_THREADS = Engine(name="bare_threads", package="torch", shapes=("threads",), open=bare_threads)
"""What one interpreter's lock leaves of the roofline, before any engine costs anything."""
