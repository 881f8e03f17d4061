"""Bugs planted into the engine, to see that the harness sees them: each with its scenario and the word for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, final

import pytest

from lightning_intune.errors import StageError
from lightning_intune.flow import calls, intake, run, snapshots, triage
from lightning_intune.flow.buffers import AnyOrder, InOrder
from lightning_intune.flow.crew import Crew
from lightning_intune.flow.lanes import arena, process_lane, start

AT = 20
"""The item that goes wrong."""


@final
@dataclass(frozen=True, kw_only=True)
class Bug:
    """One planted bug."""

    name: str
    scenario: str
    word: str
    plant: Callable[[pytest.MonkeyPatch], AbstractContextManager[None]]


@contextmanager
def lost(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An item is pulled and dropped, once."""
    pull, dropped = intake.Intake._pull, list[Any]()

    def careless(self: Any, limit: int) -> list[Any]:
        if self.next_number >= AT and not dropped:
            dropped.append(next(self._source))
        return pull(self, limit)

    patch.setattr(intake.Intake, "_pull", careless)
    yield


@contextmanager
def repeated(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An item comes twice."""
    pull = intake.Intake._pull

    def generous(self: Any, limit: int) -> list[Any]:
        items = pull(self, limit)
        return [*items, items[-1]] if self.next_number >= AT and self.next_number % 50 < len(items) else items

    patch.setattr(intake.Intake, "_pull", generous)
    yield


@contextmanager
def reordered(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Items leave as they were finished."""
    patch.setattr(run, "InOrder", AnyOrder)
    yield


@contextmanager
def lost_at_resume(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state says that one item more was delivered."""
    state = snapshots.Snapshots.state

    def hasty(self: Any, low: int, beyond: Any) -> Any:
        found = state(self, low, beyond)
        return {**found, "skip": found["skip"] + (low > 0)}

    patch.setattr(snapshots.Snapshots, "state", hasty)
    yield


@contextmanager
def hung(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The consumer is never told that its item is there."""
    put = InOrder.put

    def silent(self: InOrder, number: int, item: Any) -> bool:
        put(self, number, item)
        return False

    patch.setattr(InOrder, "put", silent)
    yield


@contextmanager
def swallowed(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An error of the function becomes an item."""

    def forgiving(fn: Callable[[Any], Any], item: Any) -> Any:
        try:
            return fn(item)
        except Exception:  # noqa: BLE001 - the bug
            return item

    patch.setattr(calls, "call", forgiving)
    yield


@contextmanager
def misnamed(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An error names the item after the one that failed."""
    failure = triage.Triage.failure

    def next_door(self: Any, number: int, error: BaseException) -> StageError:
        return failure(self, number + 1, error)

    patch.setattr(triage.Triage, "failure", next_door)
    yield


@contextmanager
def miscounted(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is skipped is not counted in the state."""
    patch.setattr(triage.Triage, "state", lambda _: {"skipped": 0})
    yield


@contextmanager
def leaked_thread(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pass leaves a thread behind."""
    over, threads, grow = threading.Event(), list[threading.Thread](), Crew.grow

    def prolific(self: Crew, target: int) -> None:
        grow(self, target)
        if not threads:
            threads.append(threading.Thread(target=over.wait, name="forgotten", daemon=True))
            threads[0].start()

    patch.setattr(Crew, "grow", prolific)
    yield
    over.set()
    for thread in threads:
        thread.join()


@contextmanager
def leaked_fd(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lane's socket is not closed."""
    kept, close = list[Any](), start.close_ours
    patch.setattr(start, "close_ours", kept.append)
    yield
    for sock in kept:
        close(sock)


@contextmanager
def leaked_shared_memory(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mapping is never undone."""
    kept = list[tuple[int, int]]()
    patch.setattr(arena.Mapping, "__del__", lambda self: kept.append((self.address, self.size)))
    yield
    for address, size in kept:
        arena._libc.munmap(address, size)


@contextmanager
def leaked_process(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker process is not ended."""
    kept, end = list[Any](), process_lane._Death.in_order
    patch.setattr(process_lane._Death, "in_order", lambda self: kept.append(self))
    patch.setattr(process_lane._Death, "strike", lambda _: None)
    yield
    patch.undo()
    for death in kept:
        death.strike()
        end(death)


@contextmanager
def fatal(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The items of a worker process that died are given up at once."""

    def hopeless(worker: Any, pool: Any, items: list[Any], *_: Any, **__: Any) -> list[Any]:
        try:
            return worker.open_lane(pool).run(items)
        except process_lane.LaneDiedError as died:
            worker.drop_lane()
            return [process_lane.Failed(died) for _ in items]

    patch.setattr(calls, "call_in_lane", hopeless)
    yield


@contextmanager
def changed(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shared memory is used again while somebody holds it."""
    view = arena.SlotsIn.view

    def hasty(self: Any, slot: int, num_bytes: int) -> Any:
        found = view(self, slot, num_bytes)
        if num_bytes > 1_000_000:
            found[: len(found) // 2] = 0
        return found

    patch.setattr(arena.SlotsIn, "view", hasty)
    yield


BUGS = (
    Bug(name="lost", scenario="random resizes", word="lost", plant=lost),
    Bug(name="lost, unordered", scenario="random resizes, unordered", word="lost", plant=lost),
    Bug(name="repeated", scenario="random resizes", word="repeated", plant=repeated),
    Bug(name="reordered", scenario="random resizes", word="reordered", plant=reordered),
    Bug(name="lost at a resume", scenario="cut and resumed at other widths", word="lost", plant=lost_at_resume),
    Bug(name="hung", scenario="a function leaks", word="hung", plant=hung),
    Bug(name="swallowed", scenario="a function raises", word="swallowed", plant=swallowed),
    Bug(name="misnamed", scenario="a function raises", word="wrong words", plant=misnamed),
    Bug(name="miscounted", scenario="failures retried, then skipped", word="miscounted", plant=miscounted),
    Bug(name="leaked thread", scenario="random resizes", word="leaked thread", plant=leaked_thread),
    Bug(name="leaked fd", scenario="a function leaks", word="leaked fd", plant=leaked_fd),
    Bug(name="leaked shared memory", scenario="huge results", word="leaked shared memory", plant=leaked_shared_memory),
    Bug(name="leaked process", scenario="a function leaks", word="leaked process", plant=leaked_process),
    Bug(name="no second try", scenario="kill -9 of worker processes", word="LaneDied", plant=fatal),
    Bug(name="changed memory", scenario="huge results", word="changed", plant=changed),
)
