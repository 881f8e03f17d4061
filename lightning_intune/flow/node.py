"""The contract of every node: torchdata's `BaseNode` (`reset`, `next`, `get_state`) plus what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from torchdata.nodes import BaseNode as BaseNode

T = TypeVar("T", covariant=True)

State = dict[str, Any]


class StoppedError(RuntimeError):
    """An item was asked of a stage that was shut down. Never a StopIteration: that would end an epoch early."""


class Node(BaseNode[T]):
    """A torchdata node that can be shut down, told its epoch, and walked.

    Subclasses implement `reset` (calling `super().reset(state)` first), `next` and `get_state`, as
    torchdata asks. State taken after item k, given to `reset`, continues with item k+1. A node has
    one consumer at a time; only `shutdown` may be called from any thread.
    """

    replays = False
    """Whether a resume pulls items again and needs the very same ones: stages upstream then keep their order."""

    def __init__(self, *sources: BaseNode[Any]) -> None:
        super().__init__()
        self._sources = sources
        if self.replays:
            for node in (node for source in sources for node in walk(source)):
                if isinstance(node, Node):
                    node.keep_order()

    @property
    def sources(self) -> tuple[BaseNode[Any], ...]:
        """The nodes this one pulls from, empty for a source."""
        return self._sources

    @property
    def keeps_order(self) -> bool:
        """Whether the same source items always come out in the same order."""
        return True

    def keep_order(self) -> None:
        """Called at construction of a node downstream that needs it (`replays`)."""

    def shutdown(self) -> None:
        """Stop every worker here and upstream, and wait for them. Harmless when called again.

        torchdata 0.11 has no such call: its threads outlive the iterator. After it, `reset` starts anew.
        """
        for source in self._sources:
            shut_down(source)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sources which epoch the next fresh `reset` begins; seeded orders depend on it."""
        for source in self._sources:
            set_epoch(source, epoch)

    def release(self) -> None:
        """Let whoever waits in `next` of this very node go: its pass is over, and a `reset` follows. Any thread."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy (ddp_spawn, notebooks) begins anew, as after construction: where a node stands is in its state.
        return {**self.__dict__, "_BaseNode__initialized": False}


@runtime_checkable
class Bursting(Protocol):
    """A node that can hand over several items at once without ever waiting for more than the first.

    That makes claims of many tiny items safe: no item is held back while its claimer waits for the next.
    """

    def next_burst(self, limit: int) -> list[Any]:
        """Between 1 and `limit` items: waits for the first only. StopIteration at the end."""
        ...


def sources_of(node: BaseNode[Any]) -> list[BaseNode[Any]]:
    """The nodes that `node` pulls from; a foreign one keeps them in attributes, or in lists, tuples or dicts there."""
    if isinstance(node, Node):
        return list(node.sources)
    # What torchdata's own nodes keep besides is their present iterator.
    is_torchdata = type(node).__module__.startswith("torchdata.")
    values = [value for name, value in vars(node).items() if not (is_torchdata and name.startswith("_"))]
    found: dict[int, BaseNode[Any]] = {}
    for value in values:
        members: Iterable[Any] = value.values() if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType]
        for member in members if isinstance(value, list | tuple | dict) else [value]:
            if isinstance(member, BaseNode):
                found[id(member)] = member  # pyright: ignore[reportUnknownArgumentType]
    return list(found.values())


def shut_down(node: BaseNode[Any]) -> None:
    """Shut `node` down if it knows how, else what is upstream of it."""
    stop = getattr(node, "shutdown", None)
    if callable(stop):
        stop()
        return
    for source in sources_of(node):
        shut_down(source)


def set_epoch(node: BaseNode[Any], epoch: int) -> None:
    """Tell `node` its epoch; a foreign one that does not pass that on by itself is passed by."""
    tell = getattr(node, "set_epoch", None)
    if callable(tell):
        tell(epoch)
    if not isinstance(node, Node):
        for source in sources_of(node):
            set_epoch(source, epoch)


def release(node: BaseNode[Any]) -> None:
    """Release whoever waits in `node` or upstream of it (see `Node.release`)."""
    for upstream in walk(node):
        if isinstance(upstream, Node):
            upstream.release()


def has_fixed_order(node: BaseNode[Any]) -> bool:
    """Whether `node` gives the same items in the same order after every resume: no unordered stage is upstream."""
    return all(not isinstance(upstream, Node) or upstream.keeps_order for upstream in walk(node))


def walk(node: BaseNode[Any]) -> Iterator[BaseNode[Any]]:
    """`node` and everything upstream of it, sources first, each once."""
    seen: set[int] = set()

    def visit(node: BaseNode[Any]) -> Iterator[BaseNode[Any]]:
        if id(node) in seen:
            return
        seen.add(id(node))
        for source in sources_of(node):
            yield from visit(source)
        yield node

    return visit(node)
