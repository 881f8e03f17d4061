"""Parcels from every rank to every other, handed on around a ring of sockets."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple, final

_HEADER = struct.Struct("!QIIQ")
_MAX_READS = 16
"""In a row, before what is to be sent gets its turn."""
_MAX_VIEWS = 64
"""In one sendmsg; systems allow 1024."""


class Label(NamedTuple):
    """What is written on a parcel."""

    call: int
    sender: int
    to: int
    num_bytes: int


class Kind(Enum):
    """What went wrong."""

    ENDED = "the connection was closed at the other end"
    LATE = "nothing came within the time"
    WRONG = "something else came than was awaited"
    OWN = "this rank itself failed"


@final
class RingError(Exception):
    """`rank` is the one that `kind` is said of; `waits_for`, the one without which this rank cannot go on."""

    def __init__(self, kind: Kind, rank: int, waits_for: int, text: str) -> None:
        super().__init__(text)
        self.kind, self.rank, self.waits_for = kind, rank, waits_for


@final
class Ring:
    """Two connected sockets, that to the next rank and that from the previous one. One thread at a time.

    A parcel for a rank d places ahead crosses d connections. Each rank sends and reads at the same time, whichever is
    possible, so no parcel is too large; and it reads exactly what one call brings, so calls may overlap on the wire.
    """

    def __init__(
        self,
        to_next: socket.socket,
        from_previous: socket.socket,
        *,
        rank: int,
        world_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._to_next, self._from_previous = to_next, from_previous
        self._rank, self._world_size, self._clock = rank, world_size, clock
        self._next, self._previous = (rank + 1) % world_size, (rank - 1) % world_size
        self._spare: list[bytearray] = []
        for end in (to_next, from_previous):
            end.setblocking(False)

    def exchange(
        self, call: int, parcels: Sequence[memoryview], rooms: Sequence[memoryview], *, until_s: float
    ) -> None:
        """`parcels[r]` goes to rank r, and `rooms[r]` gets what comes from it; this rank's own are left alone.

        RingError when a neighbour has closed, when it is `until_s` on the clock, or another size comes than `rooms`
        have. The ring is of no use then.
        """
        num_parcels = self._world_size * (self._world_size - 1) // 2
        out = _Out(self._to_next, num_parcels, self._spare)
        coming = _In(self._from_previous, num_parcels, lambda label: self._room(label, call, rooms))
        for places in range(self._world_size - 1, 0, -1):  # what has the longest way goes first
            to = (self._rank + places) % self._world_size
            out.put(Label(call, self._rank, to, len(parcels[to])), parcels[to])
        with selectors.DefaultSelector() as selector:
            selector.register(self._from_previous, selectors.EVENT_READ)
            selector.register(self._to_next, selectors.EVENT_READ)
            while coming.num_left or out.num_left:
                self._step(selector, out, coming, until_s)

    def close(self) -> None:
        """Both neighbours will find it closed."""
        for end in (self._to_next, self._from_previous):
            end.close()

    def _step(self, selector: selectors.BaseSelector, out: _Out, coming: _In, until_s: float) -> None:
        waits_for = self._previous if coming.num_left else self._next
        left_s = until_s - self._clock()
        if left_s <= 0:
            raise RingError(Kind.LATE, waits_for, waits_for, f"waited for rank {waits_for} for too long")
        _watch(selector, self._from_previous, selectors.EVENT_READ if coming.num_left else 0)
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if out.has_some else 0)
        # Reading from the next rank, which never sends, shows that it has closed; that is its right once it has all.
        _watch(selector, self._to_next, wanted if out.num_left else 0)
        for key, events in selector.select(left_s):
            comes = key.fileobj is self._from_previous
            try:
                if comes:
                    for label, body in coming.read():
                        if label.to != self._rank:
                            out.put(label, body)
                elif events & selectors.EVENT_READ:
                    _nothing_from(self._to_next)
                else:
                    out.send()
            except OSError as error:
                peer = self._previous if comes else self._next
                raise RingError(Kind.ENDED, peer, waits_for, f"rank {peer}: {error}") from error

    def _room(self, label: Label, call: int, rooms: Sequence[memoryview]) -> memoryview:
        """Where the parcel goes, once it is seen to be one of this call."""
        places = (self._rank - label.sender) % self._world_size
        is_ours = label.call == call and label.sender < self._world_size > label.to and places > 0
        if not is_ours or (label.to - label.sender) % self._world_size < places:
            text = f"rank {self._previous} handed on {label} in call {call} of rank {self._rank}"
            raise RingError(Kind.WRONG, self._previous, self._previous, text)
        if label.to != self._rank:
            return self._borrow(label.num_bytes)
        room = rooms[label.sender]
        if len(room) != label.num_bytes:
            text = (
                f"rank {label.sender} sent {label.num_bytes} bytes where rank {self._rank} awaited {len(room)}: they "
                "are not at the same call"
            )
            raise RingError(Kind.WRONG, label.sender, label.sender, text)
        return room

    def _borrow(self, num_bytes: int) -> memoryview:
        """Memory for a parcel on its way; that of earlier ones where it is large enough."""
        places = sorted(range(len(self._spare)), key=lambda place: len(self._spare[place]))
        fitting = next((place for place in places if len(self._spare[place]) >= num_bytes), None)
        if fitting is not None:
            return memoryview(self._spare.pop(fitting))[:num_bytes]
        if places:
            del self._spare[places[0]]  # a larger one takes its place: they stay equally many
        return memoryview(bytearray(num_bytes))


@final
class _Out:
    """What goes to the next rank in one call: own parcels, and those of others as they come."""

    def __init__(self, end: socket.socket, num_parcels: int, spare: list[bytearray]) -> None:
        self._end, self.num_left, self._spare = end, num_parcels, spare
        self._views: deque[memoryview] = deque()

    @property
    def has_some(self) -> bool:
        return bool(self._views)

    def put(self, label: Label, body: memoryview) -> None:
        self._views += (memoryview(_HEADER.pack(*label)), body)

    def send(self) -> None:
        """As much as the socket takes now."""
        try:
            num_sent = self._end.sendmsg([self._views[n] for n in range(min(len(self._views), _MAX_VIEWS))])
        except BlockingIOError:
            return
        while self._views and num_sent >= len(self._views[0]):
            view = self._views.popleft()
            num_sent -= len(view)
            if len(self._views) % 2 == 0:  # a label and a body by turns
                self.num_left -= 1
                if isinstance(view.obj, bytearray):
                    self._spare.append(view.obj)  # borrowed, and free again
        if num_sent:
            self._views[0] = self._views[0][num_sent:]


@final
class _In:
    """What comes from the previous rank in one call, parcel by parcel."""

    def __init__(self, end: socket.socket, num_parcels: int, room: Callable[[Label], memoryview]) -> None:
        self._end, self.num_left, self._room_of = end, num_parcels, room
        self._header = bytearray(_HEADER.size)
        self._label: Label | None = None
        self._body = self._left = memoryview(self._header)

    def read(self) -> Iterator[tuple[Label, memoryview]]:
        """The parcels that are whole now. OSError when the other end has closed."""
        for _ in range(_MAX_READS):
            if not self.num_left:
                return
            try:
                num_read = self._end.recv_into(self._left)
            except BlockingIOError:
                return
            if num_read == 0:
                raise ConnectionResetError("closed its end")
            self._left = self._left[num_read:]
            if len(self._left):
                continue
            if self._label is None:
                self._label = Label(*_HEADER.unpack(self._header))
                self._body = self._left = self._room_of(self._label)
            if not len(self._left):
                yield self._label, self._body
                self.num_left -= 1
                self._label, self._left = None, memoryview(self._header)


def _watch(selector: selectors.BaseSelector, end: socket.socket, events: int) -> None:
    key = selector.get_map().get(end)
    if key is None:
        return
    if not events:
        selector.unregister(end)
    elif key.events != events:
        selector.modify(end, events)


def _nothing_from(end: socket.socket) -> None:
    """OSError where the other end has closed."""
    try:
        sent = end.recv(1)
    except BlockingIOError:
        return
    raise ConnectionResetError("sent back what it must not" if sent else "closed its end")
