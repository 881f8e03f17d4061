"""Ranks without processes: threads that meet in a fake `all_gather`, and what they hand to `EqualSteps`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

from hypothesis import strategies as st

from lightning_intune.flow import EqualSteps, IterableSource, Node

T = TypeVar("T")


class Ranks:
    """What the ranks of one job have in common; `all_gather` of as many threads as there are ranks."""

    def __init__(self, world_size: int, timeout_s: float = 30) -> None:
        self.world_size, self.num_gathers = world_size, 0
        self._barrier = threading.Barrier(world_size, timeout=timeout_s)
        self._messages: list[Any] = [None] * world_size

    def gather(self, rank: int, message: Any) -> list[Any]:
        self._messages[rank] = pickle.dumps(message)
        self._barrier.wait()
        messages = [pickle.loads(message) for message in self._messages]
        if self._barrier.wait() == 0:
            self.num_gathers += 1
        return messages

    def leave(self) -> None:
        self._barrier.abort()


class Line:
    """One rank's communicator."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.world_size, self.is_open = ranks, rank, ranks.world_size, False

    def open(self) -> None:
        self.is_open = True

    def gather(self, message: Any) -> list[Any]:
        assert self.is_open
        return self.ranks.gather(self.rank, message)


def on_all_ranks(world_size: int, work: Callable[[Line], Any]) -> list[Any]:
    """`work` on every rank at once; what it returned or raised, by rank."""
    ranks = Ranks(world_size)
    return at_once([Line(ranks, rank) for rank in range(world_size)], work)


def at_once(lines: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
    """`work` on every line, each in a thread of its own; what it returned or raised, in their order."""
    results: list[Any] = [None] * len(lines)

    def run(rank: int) -> None:
        try:
            results[rank] = work(lines[rank])
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(lines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def item(rank: int, number: int) -> str:
    return f"{rank}.{number}"


def source(rank: int, count: int) -> Node[str]:
    return IterableSource([item(rank, number) for number in range(count)])


def expected(rank: int, count: int, num_steps: int) -> list[str]:
    return [item(rank, n) if n < count else f"pad of {item(rank, count - 1)}" for n in range(num_steps)]


class Flaky(Node[str]):
    """A source whose items are looked at before they go on; it has its source's state."""

    def __init__(self, source: Node[str], look: Callable[[str], object]) -> None:
        super().__init__(source)
        self.look = look

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        self.sources[0].reset(initial_state)

    def next(self) -> str:
        text = next(self.sources[0])
        self.look(text)
        return text

    def get_state(self) -> Any:
        return self.sources[0].state_dict()


COUNTS = st.lists(st.integers(0, 30), min_size=2, max_size=4)
MODES = st.sampled_from(["drop", "pad"])


def equal_steps(line: Line, counts: list[int], mode: Any, window: int, num_items: Any = None) -> EqualSteps[str]:
    return EqualSteps(
        source(line.rank, counts[line.rank]),
        mode=mode,
        window=window,
        pad=lambda s: f"pad of {s}",
        num_items=num_items,
        communicator=line,
    )


def at(node: Node[Any], position: int) -> Any:
    list(islice(node, position))
    state = node.state_dict()
    node.shutdown()
    return state
