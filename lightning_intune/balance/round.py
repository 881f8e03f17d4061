"""One round: the ranks read some steps' samples, plan them together, and exchange what moves."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import numpy as np

from lightning_intune.balance.bubble import BubbleMeter
from lightning_intune.balance.channel import Channel
from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.lengths import Lengths
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
from lightning_intune.flow.ahead import Ahead
from lightning_intune.flow.node import State, StoppedError

T = TypeVar("T")
Observed = tuple[int, float, float, float]
"""A step's number among those of all passes, its seconds, and the features of what it was computed on."""

_SPARE = -1  # the step of a sample that is sent to be copied


@final
@dataclass(frozen=True, kw_only=True)
class _Report:
    """What a rank tells the others about its block."""

    num_samples: int
    lengths: Lengths | None
    """In mode global."""
    total: float
    """Cost of the block, in mode reservoir."""
    offered: Floats
    """Costs of the samples that may be swapped, in mode reservoir."""
    error: str | None
    is_stopped: bool
    """Whether that error is only that the rank takes no more steps."""
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
    counts: list[float]
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
    base: int
    """Of a step's number among those of all passes, where its number in the epoch begins."""
    last_sample: list[T]
    """The last one seen, if there was one: to make copies of."""
    num_offered: int = MIN_OFFERED


@final
class Round(Generic[T]):
    """`size` steps being read, planned and exchanged. All is read after the end of `ahead`.

    A round that is stopped reads nothing, and tells the others so: no rank goes on behind it.
    """

    def __init__(self, desk: Desk[T], *, size: int, first_step: int, is_stopped: bool = False) -> None:
        self.batches: list[RankBatch[T]] = []
        self.is_last = False
        self.state: State = {}
        """Without `skip`."""
        self.is_sound = False
        """Whether all ranks have come to the end of it, and could go on: none has failed."""
        self.size = size
        self._desk, self._rules, self._first_step = desk, desk.rules, first_step
        self._rank, self._num_ranks = desk.channel.rank, desk.channel.world_size
        self.ahead = Ahead(self._work, owner="BalancedExchange", is_stopped=is_stopped)

    @property
    def ends_all(self) -> bool:
        """Whether no rank begins another one behind it."""
        return self.is_last or self.ahead.failure is not None

    def _work(self, stopped: threading.Event) -> None:
        desk, cost_before = self._desk, self._desk.cost.state_dict()
        block = desk.reader.read(self.size * self._rules.batch_size, stopped)
        report, error, costs = self._report(block, stopped)
        reports: list[_Report] = self._gather(report)
        for rank, told in enumerate(reports):
            for step, seconds, *_ in told.observed:
                desk.meter.observe(rank, step, seconds)
        desk.meter.close()
        self.is_sound = all(told.error is None or told.is_stopped for told in reports)
        _raise_failures([told.error for told in reports], error, [told.is_stopped for told in reports])
        self.is_sound = False
        self.state = {
            "rules": self._rules.summary(),
            "ranks": [told.parts for told in reports],
            "size": self.size,
            "steps": self._first_step,
            "cost": cost_before,
            "offered": desk.num_offered,
        }
        num_steps = self._rules.num_steps([told.num_samples for told in reports])
        desk.cost.coefficients = reports[0].coefficients  # rank 0's: a fit's last bit may differ between machines
        if num_steps > 0:
            self._deliver(block.samples, costs, reports, num_steps)
        for told in reports:
            for _, seconds, *features in told.observed:
                if any(features):
                    desk.cost.observe_features((features[0], features[1]), seconds)
        self.is_last = num_steps < self.size
        self.is_sound = True

    def _gather(self, message: Any) -> list[Any]:
        return [message] if self._num_ranks == 1 else self._desk.channel.gather(message)

    def _report(self, block: Block[T], stopped: threading.Event) -> tuple[_Report, Exception | None, Floats]:
        """The block told, the error that came in its place, and the samples' costs."""
        desk, rules, error = self._desk, self._rules, block.error
        lengths, costs = None, np.zeros(0)
        try:
            lengths = Lengths.of(block.samples, rules.length)
            costs = lengths.costs(desk.cost)
        except Exception as raised:  # noqa: BLE001 - told to the other ranks, and raised in the consumer
            error = error or raised
        if stopped.is_set() and error is None:
            error = StoppedError("the rank was shut down, or began anew")
        is_reservoir = rules.mode == "reservoir"
        report = _Report(
            num_samples=len(block.samples),
            lengths=lengths if rules.mode == "global" else None,
            total=float(costs.sum()) if is_reservoir else 0.0,
            offered=costs[candidates(costs, desk.num_offered)] if is_reservoir else costs[:0],
            error=_words(error),
            is_stopped=isinstance(error, StoppedError) and stopped.is_set(),
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
            lengths = [told.lengths for told in reports if told.lengths is not None]
            all_costs = [part.costs(desk.cost) for part in lengths]
            ranks = ranks_by_step(
                all_costs,
                [part.values for part in lengths],
                rules.batch_size,
                equal_count=rules.equal_count,
                padded=rules.padded,
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
            costs = Lengths.of([entry[3] for entry in placed], self._rules.length).costs(desk.cost)
            steps = self._rules.steps_held(costs).tolist()
        batches: list[list[T]] = [[] for _ in range(num_steps)]
        for step, entry in zip(steps, placed, strict=True):
            if step < num_steps:  # drop: the others lack samples for it
                batches[step].append(entry[3])
        return batches

    def _held(self, batches: list[list[T]], error: Exception | None) -> _Held:
        rules, cost = self._rules, self._desk.cost
        return _Held(
            costs=[cost.batch_cost(Lengths.of(batch, rules.length).values) for batch in batches],
            counts=[rules.count_of(batch) for batch in batches],
            error=_words(error),
        )

    def _batch(self, batch: list[T], step: int, told: list[_Held]) -> RankBatch[T]:
        planned = tuple(held.costs[step] for held in told)
        self._desk.meter.plan(self._desk.base + self._first_step + step, planned)
        return RankBatch(
            step=self._first_step + step,
            samples=tuple(batch or self._desk.last_sample[:1]),
            is_padding=not batch,
            count=told[self._rank].counts[step],
            global_count=sum(held.counts[step] for held in told),
            world_size=self._num_ranks,
            planned_costs=planned,
        )


def _raise_failures(
    errors: Sequence[str | None], own: Exception | None, are_stopped: Sequence[bool] | None = None
) -> None:
    """The own error, or one that names the rank that failed, before one that has only stopped."""
    if own is not None:
        raise own
    failed = [rank for rank, error in enumerate(errors) if error is not None]
    for rank in sorted(failed, key=lambda rank: (are_stopped is not None and are_stopped[rank], rank)):
        if are_stopped is not None and are_stopped[rank]:
            raise StoppedError(
                f"BalancedExchange: rank {rank} was shut down, or began anew, and no rank can go on without it. Every "
                "rank must take equally many steps; see that rank's own log."
            )
        raise RuntimeError(
            f"BalancedExchange: rank {rank} failed with {errors[rank]}, and no rank can go on without it. See that "
            "rank's own traceback."
        )


def _words(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
