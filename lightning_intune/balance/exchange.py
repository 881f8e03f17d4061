"""Samples exchanged between ranks, ahead of need, so that every step costs all of them the same."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeVar, final

from lightning_intune.balance.bubble import BubbleMeter, BubbleStats
from lightning_intune.balance.channel import Channel, GlooChannel
from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.plan import MIN_OFFERED, Mode
from lightning_intune.balance.reader import Part, ShardReader, fresh_part
from lightning_intune.balance.round import Desk, Observed, Round
from lightning_intune.balance.rules import Rules
from lightning_intune.balance.share import RankBatch
from lightning_intune.balance.takeover import take_over
from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State, shut_down
from lightning_intune.flow.run import StoppedError

T = TypeVar("T")
Source = BaseNode[T] | Callable[[int, int], BaseNode[T]]


@final
class BalancedExchange(Node[RankBatch[T]]):
    """A `RankBatch` per step on every rank, of near-equal cost on all, and equally many steps on all.

    The ranks read, plan and exchange `window` steps of `batch_size` samples at a time in a thread, on a gloo group of
    their own, while the window before is trained on; up to two windows are held. What moves is a whole sample of
    `source`, an impression or a session. `length` tells its length, `cost` what that costs, `count` how many
    impressions it counts in the loss (default 1).

    mode `off`: every rank keeps what it reads, in order. `local`: it keeps it, and spreads it evenly over a window's
    steps. `reservoir`: besides, each rank offers a few samples per window for swaps, so that windows cost all ranks
    the same; some scalars per step are sent. `global`: lengths (u16, where they fit) are gathered and every single
    step is divided anew, moving few samples: each global step has the samples that mode `off` would give it.
    With `equal_count` all ranks get as many samples, where that many are left; without it any number (mode `global`).

    Uneven ranks: with `uneven="pad"` (default) no sample is dropped, and a rank that has none for a step gets a copy
    that weighs nothing; with `"drop"` all end before the first step for which a rank lacks samples. Every rank must
    take its steps in step with the others, as DDP does, and multiply the sum of its losses by `loss_scale`.

    `source` is this rank's node, or `make(shard, num_shards)` that gives the node of one of as many shards as there
    were ranks at first. The state, the same on every rank, holds every rank's position: rank 0's may be loaded by all.
    It resumes with the next step; on another number of ranks, which needs `make`, with every sample not delivered and
    none else. Upstream must give the same samples in the same order again. Where `observe` fits the cost model in the
    run, later windows' samples may lie on other ranks after a resume.

    A rank that fails, is shut down or does not come within `timeout_s` ends all with an error that names it. With
    one rank there is nobody to exchange with: batches are planned as in mode `local`, or read in order in mode `off`
    and `global`.
    """

    replays = True

    def __init__(
        self,
        source: Source[T],
        *,
        length: Callable[[T], float],
        batch_size: int,
        cost: CostModel | None = None,
        mode: Mode = "global",
        equal_count: bool = True,
        count: Callable[[T], int] | None = None,
        uneven: Literal["pad", "drop"] = "pad",
        window: int = 8,
        timeout_s: float = 600.0,
        channel: Channel | None = None,
        join_s: float = 5.0,
    ) -> None:
        self._channel: Channel = GlooChannel(timeout_s) if channel is None else channel
        self.cost = CostModel() if cost is None else cost
        self._rules = Rules(
            batch_size=batch_size,
            mode=mode,
            equal_count=equal_count,
            uneven=uneven,
            length=length,
            count=count,
            padded=self.cost.padded,
        )
        if window < 1:
            raise ConfigError(f"BalancedExchange: window={window} has no step. Set it to 1 or more.")
        self._window, self._join_s = window, join_s
        self._given: Source[T] = source
        self._nodes: dict[tuple[int, int], BaseNode[T]] = {}
        self._epoch: int | None = None
        self._pending: Round[T] | None = None
        super().__init__(self._shard(self._channel.rank, self._channel.world_size))

    @property
    def sources(self) -> tuple[BaseNode[Any], ...]:
        """The nodes this rank reads, those of shards taken over included."""
        return tuple(self._nodes.values()) or super().sources

    @property
    def bubbles(self) -> BubbleStats | None:
        """The last full window of steps that all ranks have told `observe` about; None before."""
        return self._desk.meter.last

    def observe(self, compute_s: float) -> None:
        """The step on the batch taken last took `compute_s` on this rank, without waiting for others.

        It fits the cost model (all ranks' steps, the same fit everywhere) and feeds `bubbles`. Call it from the
        thread that takes the batches, at most once per batch. A second of waiting told as computing hides what is to
        be seen: measure up to the backward pass's all-reduce, or CPU or device time.
        """
        if self._num_told < self._num_taken:
            self._num_told = self._num_taken
            observed: Observed = (self._num_taken - 1, compute_s, *self._features)
            self._desk.observed.append(observed)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for source in self.sources:
            if isinstance(source, Node):
                source.set_epoch(epoch)

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._abandon(must_end=True)
        self._loaded: State = initial_state or {"ranks": None}
        self._state: State | None = None
        self._size, self._skip = 1, 0
        parts = self._parts(self._loaded)
        self._desk = Desk[T](
            rules=self._rules,
            reader=ShardReader(self._shard, parts),
            cost=self.cost,
            channel=self._channel,
            meter=BubbleMeter(self._channel.world_size, self._window),
            observed=deque(),
            last_sample=[],
        )
        self._desk.num_offered = self._loaded.get("offered", MIN_OFFERED)
        self._steps: list[RankBatch[T]] = []
        self._place = 0
        self._num_planned = -self._skip  # steps are numbered from the first that is taken
        self._num_taken = self._num_told = 0
        self._features = (0.0, 0.0)
        self._is_last = False
        self._failure: Exception | None = None

    def next(self) -> RankBatch[T]:
        while True:
            while self._place == len(self._steps):
                if self._failure is not None:
                    raise self._failure
                if self._is_last:
                    raise StopIteration
                self._advance()
            batch = self._steps[self._place]
            self._place += 1
            if self._skip > 0:
                self._skip -= 1
                continue
            self._num_taken += 1
            lengths = [] if batch.is_padding else [self._rules.length(sample) for sample in batch.samples]
            self._features = self.cost.features(lengths)
            return batch

    def get_state(self) -> State:
        return self._loaded if self._state is None else {**self._state, "skip": self._place}

    def shutdown(self) -> None:
        if self._pending is not None and self._failure is None:
            self._failure = StoppedError("BalancedExchange was shut down. Call reset to start anew.")
        self._abandon(must_end=False)
        super().shutdown()

    def _parts(self, state: State) -> list[Part]:
        """What this rank reads, from the start or from where `state` says."""
        rank, world_size, ranks = self._channel.rank, self._channel.world_size, state["ranks"]
        if ranks is None:
            return [fresh_part(rank, world_size)]
        self._rules.check_state(state)
        self.cost.load_state_dict(state["cost"])
        if len(ranks) == world_size:
            self._size, self._skip = state["size"], state["skip"]
            return ranks[rank]
        if isinstance(self._given, BaseNode):
            raise ConfigError(
                f"BalancedExchange: this state was saved on {len(ranks)} ranks, and there are {world_size}. Pass "
                "source= as a function make(shard, num_shards), to read the others' shards; or resume with as many "
                "ranks; or start the epoch anew."
            )
        if world_size > 1:
            self._channel.open()
        return take_over(state, self._shard, self._rules, self.cost, self._channel)

    def _shard(self, number: int, num_shards: int) -> BaseNode[T]:
        if isinstance(self._given, BaseNode):
            return self._given
        key = (number, num_shards)
        if key not in self._nodes:
            node = self._nodes[key] = self._given(number, num_shards)
            if isinstance(node, Node) and self._epoch is not None:
                node.set_epoch(self._epoch)
        return self._nodes[key]

    def _advance(self) -> None:
        """Make the round that is planned the present one, and let the next be planned meanwhile."""
        if self._pending is None:
            if self._channel.world_size > 1:
                self._channel.open()
            self._pending = Round(self._desk, self._size, self._num_planned)
        done = self._pending
        done.thread.join()
        self._pending = None
        if done.failure is not None:
            self._failure = done.failure
            return
        self._steps, self._place, self._state = done.batches, 0, done.state
        self._is_last = done.is_last
        self._num_planned += len(self._steps)
        self._size = min(self._window, 2 * self._size)  # small ones first: nobody waits for a whole window
        if not self._is_last:
            self._pending = Round(self._desk, self._size, self._num_planned)

    def _abandon(self, *, must_end: bool) -> None:
        """Let the round under way come to its end: every rank that took as many steps has begun it too."""
        pending, self._pending = self._pending, None
        if pending is None or not pending.thread.is_alive():
            return
        pending.stop()
        for source in self.sources:
            shut_down(source)  # releases a read that waits
        pending.thread.join(self._join_s)
        if not pending.thread.is_alive():
            return
        text = (
            f"BalancedExchange: after {self._join_s:g} s the other ranks have not come to the window that this one has "
            "begun. Every rank must take equally many steps before it stops or begins anew."
        )
        if must_end:
            raise RuntimeError(text)
        warnings.warn(text, ResourceWarning, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        # What runs, and the samples held, are this object's own.
        mine = {"_desk", "_steps", "_failure", "_state", "_loaded"}
        kept = {name: value for name, value in super().__getstate__().items() if name not in mine}
        return {**kept, "_pending": None}
