"""The end of a graph: an iterable with state, stages, meters and a roofline, for any training loop."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, TracebackType
from typing import Any, Generic, Self, TypeVar, final

import torch
from torch.utils.data import SequentialSampler

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow.allocator import give_back_memory
from lightning_intune.flow.lanes.forking import FORK_SERVER
from lightning_intune.flow.node import BaseNode, State, set_epoch, shut_down, walk
from lightning_intune.flow.stage import ElasticStage
from lightning_intune.flow.trail import Progress, Trail
from lightning_intune.knobs import Knob
from lightning_intune.meters import FlowStats

T = TypeVar("T")

_VERSION = 1
_PENDING = object()


@final
class ElasticLoader(Generic[T]):
    """Iterates over a graph of nodes as torchdata's `Loader` does, and shows and stops its stages.

    Every `iter` begins an epoch, or continues from a loaded state; one from which nothing was taken yet
    is not begun again (Lightning calls `iter` twice before the first batch). With `restart_on_stop_iteration`
    a state saved at an epoch's end begins the next epoch; without it the resumed epoch is empty, once.
    `None` is an item like any other. State is small, versioned, and refused by another graph.

    `num_batches` is the epoch's length where it is known, or a function that tells it (ranks may be agreed on
    later); without it `len` raises TypeError. `dataset` is shown to those who look for a DataLoader's.

    >>> from lightning_intune.flow.iterable import IterableSource
    >>> from lightning_intune.flow.elastic import ElasticMapper
    >>> with ElasticLoader(ElasticMapper(IterableSource([1, 2, 3]), float, num_workers=2)) as loader:
    ...     list(loader), list(loader.stages)
    ([1.0, 2.0, 3.0], ['float'])
    """

    def __init__(
        self,
        root: BaseNode[T],
        restart_on_stop_iteration: bool = True,
        *,
        batch_size: int | None = None,
        num_batches: int | Callable[[], int] | None = None,
        dataset: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not isinstance(root, BaseNode):  # pyright: ignore[reportUnnecessaryIsInstance] - users pass anything
            raise ConfigError(
                f"ElasticLoader: root={type(root).__name__} is not a node. Pass the last node of a graph, "
                "or use lightning_intune.elastic(loader) for a DataLoader."
            )
        self.root, self.restart_on_stop_iteration, self.batch_size = root, restart_on_stop_iteration, batch_size
        self._num_batches, self._clock = num_batches, clock
        if dataset is not None:
            self.dataset = dataset
        self._epoch, self._num_yielded = -1, 0
        self._asked_epoch: int | None = None
        self.only_epoch: int | None = None
        """Where set, every epoch is that one again, shuffled alike: overfitting wants the same batches."""
        self._first: State | None = None
        self._pass: _Pass[T] | None = None
        self._untouched = self._resumed = False
        self._loaded: State | None = None
        self._ahead: tuple[State | None, T] | None = None
        self._before: State | None = None  # the pass's first delivery, of a loader that follows nobody yet
        self._trail: Trail | None = None
        self.on_step: Callable[[], object] | None = None
        """Called where the batch after one handed out is asked for, by whichever thread asks: that step is over.

        (Or about to begin, with whoever takes a batch ahead.) A trainer's own hooks cost each step several times as
        much. Not copied along with the loader.
        """
        self._is_step_open = False
        self._batches = self._samples = 0
        self._wait_s = 0.0
        self.stages: Mapping[str, ElasticStage[Any]] = _named_stages(root)

    # ---- iteration ----

    def __iter__(self) -> Iterator[T]:
        if self._loaded is not None:
            self._resume(self._loaded)
        elif not (self._untouched and (self._resumed or self._asked_epoch in (None, self._epoch))):
            self._begin()
        self._asked_epoch = None
        self._pass = _Pass(self._next)
        return self._pass

    def __len__(self) -> int:
        """Batches per epoch; TypeError where that is not known beforehand, as for an IterableDataset."""
        if self._num_batches is None:
            raise TypeError("this ElasticLoader does not know its number of batches")
        return self._num_batches() if callable(self._num_batches) else self._num_batches

    @property
    def epoch(self) -> int:
        """The epoch of the present pass, from 0; -1 before the first."""
        return self._epoch

    @property
    def batch_sampler(self) -> None:
        """None, as batches are cut by the graph: Lightning asks whatever has a `sampler` for this too."""

    @property
    def sampler(self) -> SequentialSampler:
        """Whoever has `set_epoch`: Lightning looks for it under this name, and for a sequential one to overfit with."""
        return _EpochTeller(self)

    def set_epoch(self, epoch: int) -> None:
        """Make the next fresh `iter` begin `epoch`; seeded orders depend on it."""
        self._asked_epoch = epoch if self.only_epoch is None else self.only_epoch

    def _begin(self) -> None:
        self._epoch = self._epoch + 1 if self._asked_epoch is None else self._asked_epoch
        self._asked_epoch, self._num_yielded, self._ahead = None, 0, None
        self._untouched, self._resumed = True, False
        set_epoch(self.root, self._epoch)
        self.root.reset(None if self.only_epoch is None else self._first)
        if self._first is None:
            self._first = copy.deepcopy(self.root.state_dict())  # held, it would be told what is skipped later

    def _resume(self, state: State) -> None:
        self._loaded, self._ahead = None, None
        self._epoch, self._num_yielded = state["epoch"], state["num_yielded"]
        self._asked_epoch, self._untouched, self._resumed = None, True, True
        set_epoch(self.root, self._epoch)
        try:
            self.root.reset(state["root"])
        except (ConfigError, StageError):
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise _damaged(f"a node cannot begin from its part ({type(error).__name__}: {error})") from error
        if self.restart_on_stop_iteration:
            try:
                self._ahead = (state["root"], next(self.root))
            except StopIteration:
                self._begin()

    def _next(self, asking: _Pass[T]) -> T:
        if asking is not self._pass:
            raise RuntimeError("this iterator is stale: a newer iter() of the same ElasticLoader has begun")
        if self.on_step is not None and self._is_step_open:
            self._is_step_open = False
            self.on_step()
        if self._trail is not None:
            self._trail.note(self._standing())
        elif self._untouched:  # Lightning takes one before it tells anybody that training begins
            self._before = self._standing()
        self._untouched = False
        began_s = self._clock()
        try:
            if self._ahead is not None:
                item, self._ahead = self._ahead[1], None
            else:
                item = next(self.root)
        except StopIteration:
            raise
        except BaseException:  # Ctrl-C included: nothing is left running
            self.shutdown()
            raise
        self._wait_s += self._clock() - began_s
        self._num_yielded += 1
        self._batches += 1
        self._is_step_open = True
        self._samples += num_samples(item)
        return item

    # ---- state ----

    def state_dict(self) -> State:
        """Where the present pass stands: after the last batch taken, or trained on where that is known (`follow`).

        A few hundred bytes per stage.
        """
        if self._loaded is not None:
            return self._loaded
        if self._epoch < 0:
            self._begin()
        return self._as_state(self._to_resume())

    def _as_state(self, position: State) -> State:
        return {"version": _VERSION, "graph": _fingerprint(self.root), "batch_size": self.batch_size, **position}

    def follow(self, progress: Progress) -> None:
        """Let `state_dict` tell the position behind the last batch *trained on*: trainers take batches ahead.

        A trainer that has come to the end of its epoch (it may take less than a whole one) resumes with the next.
        """
        self._trail = Trail(progress)
        if self._before is not None and progress.num_fetched() == 1:
            self._trail.note(self._before, num_fetched=0)
        self._before = None

    def _to_resume(self) -> State:
        if self._trail is not None:
            epoch = self._trail.next_epoch()
            if epoch is not None:
                return {"epoch": epoch, "num_yielded": 0, "root": None}
            state = self._trail.first_untrained()
            if state is not None:
                return state
        return self._standing()

    def _standing(self) -> State:
        root = self._ahead[0] if self._ahead is not None else self.root.state_dict()
        return {"epoch": self._epoch, "num_yielded": self._num_yielded, "root": root}

    def __getstate__(self) -> dict[str, Any]:
        # A copy (ddp_spawn, notebooks) begins anew, in another trainer.
        fresh = dict.fromkeys(("_pass", "_ahead", "_before", "_trail", "_first", "on_step"))
        return {**self.__dict__, **fresh, "_is_step_open": False}

    def load_state_dict(self, state_dict: State) -> None:
        """Make the next `iter` continue from there, at whatever widths and lanes this graph has.

        Raises ConfigError when the state is of another version or of another graph, or stands within an epoch of
        batches of another size.
        """
        is_state = isinstance(state_dict, Mapping)  # pyright: ignore[reportUnnecessaryIsInstance] - out of a checkpoint
        version = state_dict.get("version") if is_state else type(state_dict).__name__
        if version != _VERSION:
            raise ConfigError(
                f"ElasticLoader: this state has version {version!r}, and {_VERSION} is needed. It was not saved by "
                "an ElasticLoader of this release. Resume with the release that saved it, or start the epoch anew."
            )
        ours, theirs = _fingerprint(self.root), state_dict.get("graph")
        if ours != theirs:
            raise ConfigError(
                f"ElasticLoader: this state belongs to the graph {theirs}, and this loader's is {ours}. "
                "Build the same graph (widths, lanes and prefetch depth may differ), or start without the state."
            )
        for what, kinds in (("epoch", (int,)), ("num_yielded", (int,)), ("root", (dict, NoneType))):
            if what not in state_dict or not isinstance(state_dict[what], kinds):
                raise _damaged(f"its '{what}' is {state_dict.get(what, 'missing')!r}")
        size, num_yielded = state_dict.get("batch_size"), state_dict["num_yielded"]
        if size is not None and self.batch_size not in (None, size) and num_yielded > 0:
            raise ConfigError(
                f"ElasticLoader: this state is {num_yielded} batches of {size} into an epoch, and here a batch has "
                f"{self.batch_size}: as many batches would be other rows. Resume with batch_size={size}; a state of an "
                "epoch's end fits any."
            )
        self._loaded = state_dict

    # ---- stages and meters ----

    @property
    def knobs(self) -> list[Knob]:
        """One handle per stage, in flow order, to turn its width from any thread."""
        return [stage.knob for stage in self.stages.values()]

    def stats(self) -> FlowStats:
        """The meters now, counted since the loader was made; from any thread."""
        return FlowStats(
            time_s=self._clock(),
            num_batches=self._batches,
            num_samples=self._samples,
            wait_s=self._wait_s,
            process_cpu_s=time.process_time(),
            stages=tuple(stage.stats() for stage in self.stages.values()),
            startup_cpu_s=FORK_SERVER.cpu_s(),
        )

    def roofline(self, cores: float | None = None) -> float:
        """Samples/s that `cores` CPUs (default: those this process may use) could deliver at most.

        From the stages' CPU seconds per sample so far; infinite before any was metered.
        """
        stats = self.stats()
        return stats.roofline_samples_per_s(float(len(os.sched_getaffinity(0))) if cores is None else cores)

    def shutdown(self) -> None:
        """End every worker of the graph and wait for them. A new `iter` starts anew."""
        if self._untouched:  # nothing was taken of that pass: the next begins where it stood
            self._untouched = False
            if self._resumed:
                self._loaded = self._loaded or self._as_state(self._standing())
            elif self._asked_epoch is None:
                self._asked_epoch = self._epoch
        shut_down(self.root)
        give_back_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()


@final
class _EpochTeller(SequentialSampler):
    """Tells a loader its epoch. Nobody draws from it: batches are cut by the graph."""

    def __init__(self, loader: ElasticLoader[Any]) -> None:
        super().__init__(())
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)


@final
class _Pass(Iterator[T]):
    """One pass over the loader; a newer one makes it stale."""

    def __init__(self, take: Callable[[_Pass[T]], T]) -> None:
        self._take = take

    def __next__(self) -> T:
        return self._take(self)


def num_samples(batch: Any) -> int:
    """How many samples a batch holds: its `len` or first dimension, that of its first member, else 1.

    >>> num_samples({"x": torch.zeros(8, 3)}), num_samples(None)
    (8, 1)
    """
    try:
        return _num_samples(batch)
    except Exception:  # noqa: BLE001 - a 0-d array has `__len__` and no length; a count is no reason to lose a batch
        return 1


def _num_samples(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim > 0 else 1
    if isinstance(batch, Mapping):
        return _num_samples(next(iter(batch.values()))) if batch else 0
    if isinstance(batch, tuple | list):
        first = batch[0] if batch else None
        return _num_samples(first) if isinstance(first, torch.Tensor | Mapping) else max(1, len(batch))
    if isinstance(batch, str | bytes) or not hasattr(batch, "__len__"):
        return 1
    return len(batch)


def _damaged(why: str) -> ConfigError:
    return ConfigError(
        f"ElasticLoader: this state is damaged: {why}. Resume from an earlier checkpoint, or start the epoch anew."
    )


def _named_stages(root: BaseNode[Any]) -> dict[str, ElasticStage[Any]]:
    """The elastic stages in flow order; a name that returns gets a number, as errors and tags must tell them apart."""
    stages: dict[str, ElasticStage[Any]] = {}
    for node in walk(root):
        if isinstance(node, ElasticStage):
            name, count = node.name, 2
            while name in stages:
                name, count = f"{node.name}-{count}", count + 1
            if name != node.name:
                node.rename(name)
            stages[name] = node
    return stages


def _fingerprint(root: BaseNode[Any]) -> str:
    return " > ".join(
        f"{type(node).__name__}:{node.name}" if isinstance(node, ElasticStage) else type(node).__name__
        for node in walk(root)
    )
