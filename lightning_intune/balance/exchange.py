"""Samples exchanged between ranks, ahead of need, so that every step costs all of them the same."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, final

from lightning_intune.balance.bubble import BubbleMeter, BubbleStats
from lightning_intune.balance.channel import Channel, GlooChannel
from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.lengths import Lengths
from lightning_intune.balance.plan import MIN_OFFERED, Mode
from lightning_intune.balance.promised import Promised
from lightning_intune.balance.reader import Part, ShardReader, fresh_part
from lightning_intune.balance.round import Desk, Observed, Round
from lightning_intune.balance.rules import Rules
from lightning_intune.balance.shards import Shards
from lightning_intune.balance.share import RankBatch
from lightning_intune.balance.takeover import take_over
from lightning_intune.errors import ConfigError
from lightning_intune.flow.node import BaseNode, Node, State, StoppedError

T = TypeVar("T")

_STOPPED = "BalancedExchange was shut down. Call reset to start anew."
_MAX_UNTOLD = 1024  # steps that may be taken ahead of `observe`

Source = BaseNode[T] | Shards[T] | Callable[[int, int], BaseNode[T]]


@final
class BalancedExchange(Node[RankBatch[T]]):
    """A `RankBatch` per step on every rank, of near-equal cost on all, and equally many steps on all.

    The ranks read, plan and exchange `window` steps of `batch_size` samples at a time in a thread, on a gloo group of
    their own, while the window before is trained on; up to two windows are held. What moves is a whole sample of
    `source`, an impression or a session. `length` tells its length, or a list with one for every row of a session;
    `cost` what that costs, rows added up; `count` what it counts in the loss (default 1).

    mode `off`: every rank keeps what it reads, in order. `local`: it keeps it, and spreads it evenly over a window's
    steps. `reservoir`: besides, each rank offers a few samples per window for swaps, so that windows cost all ranks
    the same; some scalars per step are sent. `global`: lengths (u16, where they fit) are gathered and every single
    step is divided anew, moving few samples: each global step has the samples that mode `off` would give it.
    With `equal_count` all ranks get as many samples, where that many are left; without it any number (mode `global`).

    Uneven ranks: with `uneven="pad"` (default) no sample is dropped, and a rank that has none for a step gets a copy
    that weighs nothing; with `"drop"` all end before the first step for which a rank lacks samples. Every rank must
    take its steps in step with the others, as DDP does, and multiply the sum of its losses by `loss_scale`. Stages
    downstream may take some ahead; all ranks then end, or begin anew, behind the same step.

    `num_samples` makes the epoch's length known beforehand, `len`: how many samples this rank's source gives in an
    epoch, or a list of that for every rank. Of the former the ranks tell each other once, at the first `len` or batch:
    every rank must come to it. Sources that give another number are a RuntimeError on all ranks, at the epoch's end.

    `source` is this rank's node, or `make(shard, num_shards)` that gives the node of one of as many shards as there
    were ranks at first (or `Shards`). The state, the same on every rank, holds every rank's position: rank 0's may be
    loaded by all. It resumes with the next step; on another number of ranks, which needs `make`, with every sample not
    delivered and none else. Upstream must give the same samples in the same order again. Where `observe` fits the cost
    model in the run, later windows' samples may lie on other ranks after a resume.

    A rank that fails, is shut down or does not come within `timeout_s` ends all with an error that names it. With
    one rank there is nobody to exchange with: batches are planned as in mode `local`, or read in order in mode `off`
    and `global`.
    """

    replays = True

    def __init__(
        self,
        source: Source[T],
        *,
        length: Callable[[T], Any],
        batch_size: int,
        cost: CostModel | None = None,
        mode: Mode = "global",
        equal_count: bool = True,
        count: Callable[[T], float] | None = None,
        uneven: Literal["pad", "drop"] = "pad",
        window: int = 8,
        num_samples: int | Sequence[int] | None = None,
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
        self._window, self._join_s, self._timeout_s = window, join_s, timeout_s
        self._promised = Promised(num_samples, self._channel)
        self._given: Source[T] = source
        self._nodes: dict[tuple[int, int], BaseNode[T]] = {}
        self._epoch: int | None = None
        self._fresh_run()
        super().__init__(self._shard(self._channel.rank, self._channel.world_size))

    def _fresh_run(self) -> None:
        """What belongs to this process: the round under way, and what the ranks tell each other of steps computed."""
        self._pending: Round[T] | None = None
        self._turning = threading.Lock()  # `_pending` and `_is_closed`: the consumer's, and of who shuts down
        self._is_closed = True  # this rank begins no more rounds of the pass
        self._owes_end = False  # and the others do not know it yet
        self._is_sound = True  # nothing stands between the ranks' next messages
        self._observed: deque[Observed] = deque()
        self._meter: BubbleMeter | None = None
        self._base, self._num_planned = 0, 0

    def __len__(self) -> int:
        """Steps of every epoch, on every rank; TypeError without `num_samples`. See there for who may call it."""
        return self._rules.num_steps(self._promised.by_rank())

    @property
    def sources(self) -> tuple[BaseNode[Any], ...]:
        """The nodes this rank reads, those of shards taken over included."""
        return tuple({id(node): node for node in self._nodes.values()}.values()) or super().sources

    @property
    def keeps_order(self) -> bool:
        """False: on another number of ranks a resume deals out other steps, so stages downstream may drop none."""
        return False

    @property
    def bubbles(self) -> BubbleStats | None:
        """The last full window of steps that all ranks have told `observe` about; None before."""
        return None if self._meter is None else self._meter.last

    def observe(self, compute_s: float, *, step: int | None = None) -> None:
        """A step (None: that of the batch taken last) took `compute_s` on this rank, without waiting for others.

        It fits the cost model (all ranks' steps, the same fit everywhere) and feeds `bubbles`. Call it from the
        thread that trains, at most once per step, while its epoch lasts; `step` is `RankBatch.step`, the number in the
        epoch. A second of waiting told as computing hides what is to be seen: measure up to the backward pass's
        all-reduce, or CPU or device time.
        """
        number = self._last_taken if step is None else step
        features = self._features.pop(number, None)
        if features is not None:
            self._observed.append((self._base + number, compute_s, *features))

    def settle(self) -> BubbleStats | None:
        """Tell the other ranks what they have not heard yet of `observe`, and return the last window, however short.

        For the end of the training: every rank must call it behind the same step, and take none after it.
        """
        if self._meter is None:
            return None
        self._close()
        if not self._is_sound:
            return self.bubbles
        told = [self._observed.popleft() for _ in range(len(self._observed))]
        everybody: list[list[Observed]] = [told]
        if self._channel.world_size > 1:
            self._channel.open()
            everybody = self._channel.gather(told)
        for rank, steps in enumerate(everybody):
            for step, seconds, *_ in steps:
                self._meter.observe(rank, step, seconds)
        self._meter.close(at_least=1)
        return self.bubbles

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for source in self.sources:
            if isinstance(source, Node):
                source.set_epoch(epoch)

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._close()
        self._base += self._num_planned
        self._loaded: State = initial_state or {"ranks": None, "steps": 0, "skip": 0}
        self._state: State | None = None
        self._size, self._skip = 1, 0
        self._num_planned: int = self._loaded["steps"] + self._loaded["skip"]
        self._is_whole: bool = self._loaded.get("whole", True)  # no ranks of another number had a part in it
        parts = self._parts(self._loaded)
        world_size = self._channel.world_size
        if self._meter is None:
            self._meter = BubbleMeter(world_size, self._window)
        self._desk = Desk[T](
            rules=self._rules,
            reader=ShardReader(self._shard, parts),
            cost=self.cost,
            channel=self._channel,
            meter=self._meter,
            observed=self._observed,
            base=self._base,
            last_sample=[],
        )
        self._desk.num_offered = self._loaded.get("offered", MIN_OFFERED)
        self._steps: list[RankBatch[T]] = []
        self._place, self._last_taken = 0, -1
        self._features: dict[int, tuple[float, float]] = {}
        self._is_last = False
        self._failure: Exception | None = None
        self._is_closed = False

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
            lengths = [] if batch.is_padding else Lengths.of(batch.samples, self._rules.length).values
            self._features[batch.step] = self.cost.features(lengths)
            if len(self._features) > _MAX_UNTOLD:  # nobody observes
                self._features.pop(list(self._features)[0], None)  # noqa: RUF015 - at once, as `observe` pops too
            self._last_taken = batch.step
            return batch

    def get_state(self) -> State:
        return self._loaded if self._state is None else {**self._state, "skip": self._place, "whole": self._is_whole}

    def release(self) -> None:
        pending = self._pending
        if pending is not None:
            pending.ahead.release()

    def shutdown(self) -> None:
        self._close(self._join_s)
        super().shutdown()

    def _parts(self, state: State) -> list[Part]:
        """What this rank reads, from the start or from where `state` says."""
        rank, world_size, ranks = self._channel.rank, self._channel.world_size, state["ranks"]
        if ranks is None:
            return [fresh_part(rank, world_size)]
        self._rules.check_state(state)
        self.cost.load_state_dict(state["cost"])
        if len(ranks) == world_size:
            self._size, self._skip, self._num_planned = state["size"], state["skip"], state["steps"]
            return ranks[rank]
        self._is_whole = False
        if not isinstance(self._given, Shards) and isinstance(self._given, BaseNode):
            raise ConfigError(
                f"BalancedExchange: this state was saved on {len(ranks)} ranks, and there are {world_size}. Pass "
                "source= as a function make(shard, num_shards), to read the others' shards; or resume with as many "
                "ranks; or start the epoch anew."
            )
        if world_size > 1:
            self._channel.open()
        return take_over(state, self._shard, self._rules, self.cost, self._channel)

    def _shard(self, number: int, num_shards: int) -> BaseNode[T]:
        key = (number, num_shards)
        if isinstance(self._given, Shards):
            self._nodes[key] = self._given.shard(number, num_shards)
            return self._nodes[key]
        if isinstance(self._given, BaseNode):
            return self._given
        if key not in self._nodes:
            node = self._nodes[key] = self._given(number, num_shards)
            if isinstance(node, Node) and self._epoch is not None:
                node.set_epoch(self._epoch)
        return self._nodes[key]

    def _advance(self) -> None:
        """Make the round that is planned the present one, and let the next be planned meanwhile."""
        if self._state is None:
            self._begin_pass()
        with self._turning:
            self._pending = done = self._pending or self._begun()
        if done is None or not done.ahead.wait():
            raise StoppedError(_STOPPED)
        with self._turning:
            if self._is_closed:
                return  # shut down meanwhile, as `_failure` says
            self._take_up(done)
            self._pending = self._begun()

    def _begin_pass(self) -> None:
        if self._channel.world_size > 1:
            self._channel.open()
        if self._promised.is_given:
            len(self)  # the ranks tell each other now

    def _begun(self) -> Round[T] | None:
        """The next round, under way; None where there is none to come."""
        return None if self._is_closed else Round(self._desk, size=self._size, first_step=self._num_planned)

    def _take_up(self, done: Round[T]) -> None:
        """Make a round that has ended the present one. Under the lock, as are the others that change `_pending`."""
        self._is_closed, self._is_sound = done.ends_all, done.is_sound
        if done.ahead.failure is not None:
            self._failure = done.ahead.failure
            return
        self._steps, self._place, self._state = done.batches, 0, done.state
        self._is_last = done.is_last
        self._num_planned += len(self._steps)
        self._size = min(self._window, 2 * done.size)  # small ones first: nobody waits for a whole window
        if self._is_last and self._is_whole and self._promised.is_given and self._num_planned != len(self):
            self._failure = self._promised.broken(self._num_planned, len(self))

    def _close(self, wait_s: float | None = None) -> None:
        """Come to an end with the other ranks, within `wait_s`; None: as long as they may take, else RuntimeError.

        Every rank does so behind the same step, though with stages downstream it may have taken more or fewer ahead:
        one that has planned less goes on to the round that another has begun, to tell it that there are no more.
        """
        must_end = wait_s is None
        if wait_s is None:
            wait_s = self._join_s + (self._timeout_s if self._channel.world_size > 1 else 0.0)
        with self._turning:
            if not self._is_closed and (self._pending is not None or self._state is not None):
                self._owes_end = self._channel.world_size > 1
                self._failure = self._failure or StoppedError(_STOPPED)
            self._is_closed = True
        while (pending := self._pending) is not None or self._owes_end:
            if pending is None:
                pending = self._pending = Round(
                    self._desk, size=self._size, first_step=self._num_planned, is_stopped=True
                )
            pending.ahead.end(self.sources, wait_s, must_end=must_end)
            if not pending.ahead.has_ended:
                return  # a reset waits for it
            self._pending = None
            self._is_sound = pending.is_sound
            self._num_planned += len(pending.batches) if pending.ahead.failure is None else 0
            self._owes_end = self._owes_end and not pending.ends_all

    def __getstate__(self) -> dict[str, Any]:
        # What runs, and the samples held, are this object's own.
        mine = {"_desk", "_steps", "_failure", "_state", "_loaded", "_pending", "_turning", "_observed", "_meter"}
        return {name: value for name, value in super().__getstate__().items() if name not in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh_run()
