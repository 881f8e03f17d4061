"""An exchange in which each rank lays its parcels out in its own memory, and the others pick them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, final

import torch
from torch import Tensor

ALIGN_BYTES = 256
"""Where a parcel may begin: as far apart as CUDA lets its own allocations begin."""


class Line(Protocol):
    """How the ranks tell each other numbers, by CPU tensors: `GlooChannel`. RuntimeError names who does not come."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def all_to_all(self, sent: Tensor, sizes_out: list[int], sizes_in: list[int]) -> Tensor:
        """As `Transport.all_to_all`."""
        ...


class Window(Protocol):
    """Memory of this rank that all ranks can read, and that of its peers. One thread uses it."""

    def make(self, num_bytes: int) -> None:
        """A larger room of this rank, which nobody else sees yet. RuntimeError for want of memory."""
        ...

    def share(self) -> None:
        """From here on `view` is of the rooms made last; a collective."""
        ...

    def view(self, rank: int, begin: int, num_bytes: int) -> Tensor:
        """Those bytes [num_bytes] of that rank's room; writable if it is one's own."""
        ...

    def copy(self, to: Tensor, source: Tensor) -> None:
        """Begin a copy, behind those begun before."""
        ...

    def settle(self) -> None:
        """Wait until every copy begun has ended."""
        ...


@final
class PickUp:
    """One rank's part in each exchange; two meetings keep what is read apart from what is written.

    1. Each waits for the end of its last copies, and tells what it will lay out. Whoever has heard all of them knows
       that nobody reads its room any more.
    2. Each lays out its parcels, waits for the end of these copies, and says so. Whoever has heard all of them knows
       that all parcels lie there, and begins to pick up its own.

    Between the two all rooms grow if the fullest needs it, to the same size. A rank that fails says so at the next
    meeting, and all end with a RuntimeError that names it; one that does not come, `line` names. Either way the ranks
    are apart from then on: the caller must not exchange again.
    """

    def __init__(self, line: Line, window: Window, *, least_bytes: int = 2 << 20) -> None:
        """`least_bytes`: of the first room; a device's memory is mapped by 2 MiB."""
        self._line, self._window, self._least_bytes = line, window, least_bytes
        self._room_bytes = 0

    def exchange(self, sent: Tensor, received: Tensor, sizes_out: list[int], sizes_in: list[int]) -> None:
        """From `sent` [n] into `received` [m], both packed; the sizes as in `Transport.all_to_all`, else ValueError.

        Copies into `received`, and of what this rank keeps out of `sent`, may still be under way.
        """
        rank = self._line.rank
        self._check(sent, received, sizes_out, sizes_in)
        parcels, rooms = _parts(sent, sizes_out), _parts(received, sizes_in)
        self._window.settle()
        begins, num_bytes = layout([len(parcel) for parcel in parcels], rank)
        told = self._tell([[num_bytes, begins[to], len(parcel)] for to, parcel in enumerate(parcels)])
        if any(of_rank[0] for of_rank in told):
            self._grow(max(of_rank[0] for of_rank in told))
            awaited = [of_rank[2] for of_rank in told]
            self._together("lay out its parcels", lambda: self._lay_out(parcels, begins, rooms, awaited))
        else:
            self._compare(rooms, [0] * len(rooms))
        self._window.copy(rooms[rank], parcels[rank])
        for peer in in_turn(rank, len(rooms)):
            if len(rooms[peer]):
                self._window.copy(rooms[peer], self._window.view(peer, told[peer][1], len(rooms[peer])))

    def _check(self, sent: Tensor, received: Tensor, sizes_out: list[int], sizes_in: list[int]) -> None:
        rank, world_size = self._line.rank, self._line.world_size
        if not len(sizes_out) == len(sizes_in) == world_size or sum(sizes_out) != len(sent):
            raise ValueError(f"{len(sent)} entries do not go out as {sizes_out}, and come in as {sizes_in}")
        if sum(sizes_in) != len(received) or received.dtype != sent.dtype:
            raise ValueError(f"{len(received)} entries of {received.dtype} have no room for {sizes_in} of {sent.dtype}")
        if sizes_out[rank] != sizes_in[rank]:
            raise ValueError(f"rank {rank} gives itself {sizes_out[rank]} and gets {sizes_in[rank]}")

    def _lay_out(self, parcels: list[Tensor], begins: list[int], rooms: list[Tensor], awaited: list[int]) -> None:
        self._compare(rooms, awaited)
        for to in in_turn(self._line.rank, len(parcels)):
            if len(parcels[to]):
                self._window.copy(self._window.view(self._line.rank, begins[to], len(parcels[to])), parcels[to])
        self._window.settle()

    def _compare(self, rooms: list[Tensor], num_bytes: list[int]) -> None:
        for peer in in_turn(self._line.rank, len(rooms)):
            if len(rooms[peer]) != num_bytes[peer]:
                raise ValueError(
                    f"rank {peer} sends {num_bytes[peer]} bytes where rank {self._line.rank} awaits "
                    f"{len(rooms[peer])}: they are not at the same call"
                )

    def _grow(self, most_bytes: int) -> None:
        """Room for so much on every rank; all decide alike, as all were told the same."""
        if most_bytes <= self._room_bytes:
            return
        num_bytes = roomy(max(most_bytes, self._least_bytes), self._room_bytes)
        # One that has no memory left says so, rather than to let the others wait for it where no timeout is ours.
        self._together(f"make {num_bytes} bytes of room", lambda: self._window.make(num_bytes))
        self._together("share its room", self._window.share)
        self._room_bytes = num_bytes

    def _together(self, what: str, work: Callable[[], None]) -> None:
        """`work`, and a meeting behind it; RuntimeError on all ranks where it failed on any."""
        failure: Exception | None = None
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised once the others know
            failure = error
        told = self._tell([[int(failure is not None)]] * self._line.world_size)
        failed = ", ".join(str(rank) for rank, [has_failed] in enumerate(told) if has_failed)
        if failed:
            why = "see its own log" if failure is None else f"{type(failure).__name__}: {failure}"
            raise RuntimeError(f"overlap: rank {failed} could not {what} ({why})") from failure

    def _tell(self, rows: list[list[int]]) -> list[list[int]]:
        """`rows[r]` goes to rank r; what comes back is by sender."""
        sizes = [len(row) for row in rows]
        return self._line.all_to_all(torch.tensor(rows).flatten(), sizes, sizes).view(len(rows), -1).tolist()


def layout(parcel_bytes: Sequence[int], own: int) -> tuple[list[int], int]:
    """Where each parcel begins in its sender's room, and the bytes of all; what rank `own` keeps takes none.

    >>> layout([5, 7, 300, 0], own=1)
    ([0, 256, 256, 768], 768)
    """
    taken = [0 if to == own else -(-size // ALIGN_BYTES) * ALIGN_BYTES for to, size in enumerate(parcel_bytes)]
    *begins, num_bytes = accumulate(taken, initial=0)
    return begins, num_bytes


def roomy(most_bytes: int, before_bytes: int) -> int:
    """How large to make a room: rooms made before, which are kept, are never more in all than the last.

    >>> roomy(1000, 0), roomy(1100, 1024)
    (1536, 2048)
    """
    wanted = max(most_bytes + most_bytes // 2, 2 * before_bytes)
    return -(-wanted // ALIGN_BYTES) * ALIGN_BYTES


def in_turn(rank: int, world_size: int) -> list[int]:
    """All other ranks, beginning behind this one: so no rank is everybody's first.

    >>> in_turn(2, 4)
    [3, 0, 1]
    """
    return [(rank + places) % world_size for places in range(1, world_size)]


def _parts(flat: Tensor, sizes: list[int]) -> list[Tensor]:
    """As bytes, so that they may begin anywhere, whatever the dtype."""
    return list(flat.view(torch.uint8).split([size * flat.element_size() for size in sizes]))
