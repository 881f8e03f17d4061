"""Where the shards of an IterableDataset's loader live, and who may ask them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from lightning_intune.errors import ConfigError
from lightning_intune.flow.adapters.shard_reader import OVER, Answer, ShardReader, Ticket
from lightning_intune.flow.forks import renewed_lock
from lightning_intune.flow.lanes.lane import Failed, Lane, LaneDiedError, LanePool
from lightning_intune.flow.lanes.tries import Tries
from lightning_intune.flow.node import StoppedError

Starts = Mapping[int, tuple[int, Any]]
"""By shard: the batch a reader can begin at without running up to it, and the dataset's state there."""


@final
class ShardPool(LanePool):
    """The shards of one loader, each with its reader: here, or (`lanes`) in a process of its own.

    A worker of the stage holds no shard: it asks the one its ticket names, and waits its turn there, as
    a shard's batches come in sequence. So workers can come and go while shards stay where they are.
    A shard's process that dies is replaced, and its reader begins anew and runs up to the batch.
    `serve` may be called by any worker; `begin`, `stop` and `close` by the consumer.
    """

    def __init__(
        self,
        reader: ShardReader,
        num_shards: int,
        lanes: Callable[[], LanePool] | None,
        *,
        kind: str,
        stage: str,
    ) -> None:
        self.kind = kind
        self._reader, self._make_lanes, self._stage = reader, lanes, stage
        self._lanes: LanePool | None = None
        self._shards = [_Shard() for _ in range(max(1, num_shards))]
        self._copies = num_shards > 0
        self._turn = renewed_lock(self, "_turn", threading.Condition)
        self._stopping = False
        self.resumed_at = 0
        """Tickets served before this pass began."""

    def begin(self, taken: int, starts: Starts, over: Sequence[int]) -> None:
        """Begin a pass in which `taken` tickets are served already and the shards in `over` have ended."""
        self.close()
        num_shards = len(self._shards)
        with self._turn:
            self._stopping, self.resumed_at = False, taken
            for place, _ in enumerate(self._shards):
                shard = self._shards[place] = _Shard()
                shard.next_number = max(0, -(-(taken - place) // num_shards))
                shard.start, shard.is_over = starts.get(place, (0, None)), place in over
        if self._make_lanes is not None:
            self._lanes = self._make_lanes()  # every epoch: what was changed in the dataset is to be seen

    @property
    def num_shards(self) -> int:
        """How many shards there are; one where the loader has no workers."""
        return len(self._shards)

    @property
    def all_over(self) -> bool:
        """Whether every shard is known to have ended."""
        return all(shard.is_over for shard in self._shards)

    def serve(self, ticket: Ticket, worker: ShardLane | None = None) -> Answer:
        """The ticket's batch, once those before it are made; OVER behind the shard's end or failure."""
        shard = self._shards[ticket.shard]
        with self._turn:
            while shard.next_number != ticket.number and not shard.is_over:
                if self._stopping or (worker is not None and worker.is_killed):
                    raise StoppedError(f"stage '{self._stage}' was shut down.")
                self._turn.wait()
        if shard.is_over:
            return OVER
        try:
            answer = self._ask(shard, ticket, worker)
        except BaseException:
            with self._turn:
                shard.is_over = True
                self._turn.notify_all()
            raise
        with self._turn:
            shard.next_number += 1
            shard.is_over = not answer[0]
            if answer[2] is not None:
                shard.start = (shard.next_number, answer[2])
            self._turn.notify_all()
        return answer

    def _ask(self, shard: _Shard, ticket: Ticket, worker: ShardLane | None) -> Answer:
        tries = Tries()
        while True:
            try:
                begins = shard.lane is None
                lane = shard.lane = shard.lane or self._open()
                return lane.ask(replace(ticket, start=shard.start) if begins else ticket, worker)
            except LaneDiedError as died:
                lane, shard.lane = shard.lane, None
                if lane is not None:
                    lane.close()
                if self._stopping or (worker is not None and worker.is_killed) or not tries.may_go_on(died):
                    raise

    def _open(self) -> _Place:
        if self._lanes is not None:
            return _Place(None, self._lanes.open())
        if not self._copies:
            return _Place(self._reader, None)
        try:
            return _Place(self._reader.copied(), None)
        except Exception as error:
            raise ConfigError(
                f"stage '{self._stage}': each shard needs a copy of the dataset, and it cannot be copied: {error}. "
                "Open files and connections in its __iter__, use method='process', or a loader with num_workers=0."
            ) from error

    def open(self) -> ShardLane:
        return ShardLane(self)

    def stop(self) -> None:
        """Nobody waits for a turn any more."""
        with self._turn:
            self._stopping = True
            self._turn.notify_all()

    def wake(self) -> None:
        """Let those who wait for a turn look again."""
        with self._turn:
            self._turn.notify_all()

    def close(self) -> None:
        for shard in self._shards:
            lane, shard.lane = shard.lane, None
            if lane is not None:
                lane.close()
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()

    def __getstate__(self) -> dict[str, Any]:
        # What runs stays here; the copy begins with `begin`.
        fresh = [_Shard() for _ in self._shards]
        return {**self.__dict__, "_shards": fresh, "_lanes": None, "_turn": None, "_stopping": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._turn = renewed_lock(self, "_turn", threading.Condition)


@final
class ShardLane(Lane):
    """A stage worker's way to the shards; what their processes spend on its tickets is its cost."""

    def __init__(self, pool: ShardPool) -> None:
        self._pool, self._cpu_s, self._fn_s, self._run_delay_s = pool, 0.0, 0.0, 0.0
        self._at: Lane | None = None
        self.is_killed = False

    def run(self, items: Sequence[Any], *, within_s: float = math.inf) -> list[Any]:
        outcomes, began_s = list[Any](), time.perf_counter()
        for ticket in items:
            outcomes.append(self._serve(ticket))
            if time.perf_counter() - began_s > within_s:
                break
        self._fn_s += time.perf_counter() - began_s
        return outcomes

    def _serve(self, ticket: Ticket) -> Any:
        try:
            return self._pool.serve(ticket, self)
        except BaseException as error:  # noqa: BLE001 - kept whole and raised in the consumer
            return Failed(error)

    def runs_in(self, lane: Lane, ticket: Ticket) -> Any:
        """The outcome of `ticket` in a shard's own process."""
        (cpu_s, delay_s), self._at = (lane.cpu_s, lane.run_delay_s), lane
        try:
            return lane.run([ticket])[0]
        finally:
            self._at = None
            self._cpu_s += lane.cpu_s - cpu_s
            self._run_delay_s += lane.run_delay_s - delay_s

    @property
    def cpu_s(self) -> float:
        return self._cpu_s

    @property
    def run_delay_s(self) -> float:
        return self._run_delay_s

    @property
    def fn_s(self) -> float:
        return self._fn_s

    def close(self) -> None:
        """Nothing: the shards outlive their workers."""

    def kill(self) -> None:
        self.is_killed = True
        at = self._at
        if at is not None:
            at.kill()
        self._pool.wake()


@final
class _Place:
    """Where one shard's reader is."""

    def __init__(self, reader: ShardReader | None, lane: Lane | None) -> None:
        self._reader, self._lane = reader, lane

    def ask(self, ticket: Ticket, worker: ShardLane | None) -> Answer:
        if self._lane is None:
            assert self._reader is not None
            return self._reader(ticket)
        outcome = self._lane.run([ticket])[0] if worker is None else worker.runs_in(self._lane, ticket)
        if type(outcome) is Failed:
            raise outcome.error
        return outcome

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()


@final
class _Shard:
    """One shard's book. Written under the pool's `_turn`, but for `lane`, which belongs to whoever's turn it is."""

    def __init__(self) -> None:
        self.next_number = 0
        self.is_over = False
        self.start: tuple[int, Any] = (0, None)
        self.lane: _Place | None = None
