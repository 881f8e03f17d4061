"""One round: the ranks read some steps' samples, plan them together, and exchange what moves."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from lightning_intune.balance.bubble import BubbleMeter
from lightning_intune.balance.channel import Channel
from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.division import check_costs
from lightning_intune.balance.plan import (
    MIN_OFFERED,
    Floats,
    Ints,
    candidates,
    num_offered_next,
    ranks_by_step,
    steps_in_order,
    swap_candidates,
)
from lightning_intune.balance.reader import Block, Part, ShardReader
from lightning_intune.balance.rules import Rules
from lightning_intune.balance.share import RankBatch
from lightning_intune.flow.node import State
from lightning_intune.flow.run import StoppedError

T = TypeVar("T")
Observed = tuple[int, float, float, float]
"""A step's number, its seconds, and the features of what it was computed on."""

_SPARE = -1  # the step of a sample that is sent to be copied


@final
@dataclass(frozen=True, kw_only=True)
class _Report:
    """What a rank tells the others about its block."""

    num_samples: int
    lengths: NDArray[Any]
    """[n], in mode global; empty in the others."""
    total: float
    """Cost of the block, in mode reservoir."""
    offered: Floats
    """Costs of the samples that may be swapped, in mode reservoir."""
    error: str | None
    has_sample: bool
    """Whether it has, or ever had, a sample to make copies of."""
    parts: list[Part]
    observed: list[Observed]
    coefficients: tuple[float, float, float, float]


@final
@dataclass(frozen=True, kw_only=True)
class _Held:
    """What a rank tells the others about the samples it holds after the exchange, by step."""

    costs: list[float]
    counts: list[int]
    error: str | None


@final
@dataclass(kw_only=True)
class Desk(Generic[T]):
    """What a rank's rounds share. One round at a time works at it; `observed` is filled by the consumer."""

    rules: Rules
    reader: ShardReader[T]
    cost: CostModel
    channel: Channel
    meter: BubbleMeter
    observed: deque[Observed]
    last_sample: list[T]
    """The last one seen, if there was one: to make copies of."""
    num_offered: int = MIN_OFFERED


@final
class Round(Generic[T]):
    """`size` steps being read, planned and exchanged in a thread. All but `stop` is read after the thread's end."""

    def __init__(self, desk: Desk[T], size: int, first_step: int) -> None:
        self.batches: list[RankBatch[T]] = []
        self.is_last = False
        self.state: State = {}
        """Without `skip`."""
        self.failure: Exception | None = None
        self._desk, self._rules, self._size, self._first_step = desk, desk.rules, size, first_step
        self._rank, self._num_ranks = desk.channel.rank, desk.channel.world_size
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="balanced-exchange", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Read no more; the others are still told."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as raised:  # noqa: BLE001 - raised in the consumer
            self.failure = raised

    def _work(self) -> None:
        desk, cost_before = self._desk, self._desk.cost.state_dict()
        block = desk.reader.read(self._size * self._rules.batch_size, self._stopped)
        report, error, costs = self._report(block)
        reports: list[_Report] = self._gather(report)
        _raise_failures([told.error for told in reports], error)
        self.state = {
            "rules": self._rules.summary(),
            "ranks": [told.parts for told in reports],
            "size": self._size,
            "cost": cost_before,
            "offered": desk.num_offered,
        }
        num_steps = self._rules.num_steps([told.num_samples for told in reports])
        self.is_last = num_steps < self._size
        desk.cost.coefficients = reports[0].coefficients  # rank 0's: a fit's last bit may differ between machines
        if num_steps > 0:
            self._deliver(block.samples, costs, reports, num_steps)
        for rank, told in enumerate(reports):
            for step, seconds, *features in told.observed:
                desk.meter.observe(rank, step, seconds)
                if any(features):
                    desk.cost.observe_features((features[0], features[1]), seconds)

    def _gather(self, message: Any) -> list[Any]:
        return [message] if self._num_ranks == 1 else self._desk.channel.gather(message)

    def _report(self, block: Block[T]) -> tuple[_Report, Exception | None, Floats]:
        """The block told, the error that came in its place, and the samples' costs."""
        desk, rules, error = self._desk, self._rules, block.error
        lengths, costs = np.zeros(0, np.uint16), np.zeros(0)
        try:
            lengths = _compact([rules.length(sample) for sample in block.samples])
            costs = desk.cost(lengths)
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error = error or raised
        if self._stopped.is_set() and error is None:
            error = StoppedError("the rank was stopped")
        is_reservoir = rules.mode == "reservoir"
        report = _Report(
            num_samples=len(block.samples),
            lengths=lengths if rules.mode == "global" else lengths[:0],
            total=float(costs.sum()) if is_reservoir else 0.0,
            offered=costs[candidates(costs, desk.num_offered)] if is_reservoir else costs[:0],
            error=_words(error),
            has_sample=bool(block.samples or desk.last_sample),
            parts=block.parts,
            observed=[desk.observed.popleft() for _ in range(len(desk.observed))],
            coefficients=desk.cost.coefficients,
        )
        return report, error, costs

    def _deliver(self, samples: Sequence[T], costs: Floats, reports: list[_Report], num_steps: int) -> None:
        """Exchange what moves, and make the steps' batches of what is held then."""
        ranks, is_moving = self._plan(costs, reports)
        steps = steps_in_order(len(samples), self._rules.batch_size)
        own: list[list[tuple[int, int, int, T]]] = [[] for _ in range(self._num_ranks)]
        for place, (sample, rank, step) in enumerate(zip(samples, ranks.tolist(), steps.tolist(), strict=True)):
            own[rank].append((self._rank, place, step, sample))
        bare = [rank for rank, told in enumerate(reports) if not told.has_sample]
        donor = next(rank for rank, told in enumerate(reports) if told.num_samples > 0)
        if self._rank == donor:
            for rank in bare:
                own[rank].append((self._rank, 0, _SPARE, samples[0]))
        self._desk.last_sample[:] = samples[-1:] or self._desk.last_sample  # all of them may go to other ranks
        held, error = self._exchange(own) if is_moving or bare else (own[self._rank], None)
        try:
            batches = self._by_step(held, num_steps)
            mine = self._held(batches, error)
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error, batches = error or raised, []
            mine = _Held(costs=[], counts=[], error=_words(error))
        told: list[_Held] = self._gather(mine)
        _raise_failures([held.error for held in told], error)
        for step, batch in enumerate(batches):
            self.batches.append(self._batch(batch, step, told))

    def _plan(self, costs: Floats, reports: list[_Report]) -> tuple[Ints, bool]:
        """The rank that each own sample goes to, and whether any rank's sample moves at all: all ranks agree on it."""
        desk, rules, own = self._desk, self._rules, np.full(len(costs), self._rank)
        if self._num_ranks == 1 or rules.mode in ("off", "local"):
            return own, False
        if rules.mode == "global":
            lengths = [told.lengths for told in reports]
            all_costs = [desk.cost(part) for part in lengths]
            ranks = ranks_by_step(
                all_costs, lengths, rules.batch_size, equal_count=rules.equal_count, padded=rules.padded
            )
            return ranks[self._rank], any((part != rank).any() for rank, part in enumerate(ranks))
        totals = np.array([told.total for told in reports])
        targets, left = swap_candidates(totals, [told.offered for told in reports])
        own[candidates(costs, desk.num_offered)] = targets[self._rank]
        desk.num_offered = num_offered_next(desk.num_offered, left)
        return own, any((target != rank).any() for rank, target in enumerate(targets))

    def _exchange(self, own: list[list[tuple[int, int, int, T]]]) -> tuple[list[Any], Exception | None]:
        """What this rank holds after each has sent its parcels, and the error where a sample cannot be sent."""
        error: Exception | None = None
        parcels = [b""] * self._num_ranks
        try:
            for rank, moved in enumerate(own):
                if moved and rank != self._rank:
                    parcels[rank] = pickle.dumps(moved, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error, parcels = raised, [b""] * self._num_ranks
        received = self._desk.channel.deal(parcels)
        held = list(own[self._rank])
        try:
            for parcel in received:
                held += pickle.loads(parcel) if parcel else []
        except Exception as raised:  # noqa: BLE001 - likewise
            error = error or raised
        return held, error

    def _by_step(self, held: list[Any], num_steps: int) -> list[list[T]]:
        """The samples held, by step; within a step by the rank that read them and their order there."""
        desk = self._desk
        desk.last_sample[:] = [entry[3] for entry in held[-1:]] or desk.last_sample
        placed = sorted((entry for entry in held if entry[2] != _SPARE), key=lambda entry: entry[:2])
        if self._rules.mode == "global":
            steps = [entry[2] for entry in placed]
        else:
            costs = desk.cost(_compact([self._rules.length(entry[3]) for entry in placed]))
            steps = self._rules.steps_held(costs).tolist()
        batches: list[list[T]] = [[] for _ in range(num_steps)]
        for step, entry in zip(steps, placed, strict=True):
            if step < num_steps:  # drop: the others lack samples for it
                batches[step].append(entry[3])
        return batches

    def _held(self, batches: list[list[T]], error: Exception | None) -> _Held:
        rules, cost = self._rules, self._desk.cost
        return _Held(
            costs=[cost.batch_cost([rules.length(sample) for sample in batch]) for batch in batches],
            counts=[rules.count_of(batch) for batch in batches],
            error=_words(error),
        )

    def _batch(self, batch: list[T], step: int, told: list[_Held]) -> RankBatch[T]:
        planned = tuple(held.costs[step] for held in told)
        self._desk.meter.plan(self._first_step + step, planned)
        return RankBatch(
            samples=tuple(batch or self._desk.last_sample[:1]),
            is_padding=not batch,
            count=told[self._rank].counts[step],
            global_count=sum(held.counts[step] for held in told),
            world_size=self._num_ranks,
            planned_costs=planned,
        )


def _raise_failures(errors: Sequence[str | None], own: Exception | None) -> None:
    """The own error, or one that names the rank that failed."""
    if own is not None:
        raise own
    for rank, error in enumerate(errors):
        if error is not None:
            raise RuntimeError(
                f"BalancedExchange: rank {rank} failed with {error}, and no rank can go on without it. See that rank's "
                "own traceback."
            )


def _words(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _compact(lengths: Sequence[float]) -> NDArray[Any]:
    """Lengths in the smallest unsigned integers that hold them, u16 for most; as they are where not whole."""
    values = check_costs(np.asarray(lengths, np.float64))
    whole = values.astype(np.uint64) if (values < 2**63).all() else None
    if whole is None or (whole != values).any():
        return values
    return whole.astype(np.result_type(np.uint8, np.min_scalar_type(int(whole.max(initial=0)))))
