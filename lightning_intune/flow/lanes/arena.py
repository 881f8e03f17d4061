"""Shared memory between a lane and its process: reused memfd slots, and leases that say when one is free."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from lightning_intune.flow.forks import renewed_lock

Bytes = npt.NDArray[np.uint8]

ALIGN = 64  # bytes; Arrow asks for it, SIMD loads like it
_PAGE = 4096
_MAX_SLOTS = 8192  # held at once by one pool: every slot is a mapping, and Linux allows 65,530 a process
_TRIM_EVERY = 512  # messages between two looks at slots nobody needed
MAX_IDLE_BYTES = 32 << 20  # of a lane's free slots, or a single larger one, where its stage is to bound its bytes

_MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@final
class Mapping:
    """`size` bytes of a descriptor's memory, mapped until the last array over it is gone.

    Python's own `mmap` would keep one descriptor open per mapping (until 3.13), and a user who keeps
    batches would run out of them; this one needs none after it was made.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_unmap", "address", "size")

    def __init__(self, fd: int, size: int, *, shared: bool = True) -> None:
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | _MAP_POPULATE
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            errno = ctypes.get_errno()
            raise OSError(errno, f"cannot map {size} bytes of shared memory: {os.strerror(errno)}")
        self.address, self.size = address, size
        self._unmap: Callable[[int, int], int] = _libc.munmap  # bound here: globals may be gone at exit
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        if hasattr(self, "_unmap"):  # not when the constructor failed
            self._unmap(self.address, self.size)


@final
class Lease:
    """One result's hold on a slot: every view of the result keeps it alive, its death frees the slot.

    A fresh object per result, never the mapping itself: NumPy collapses the bases of views down to
    the first base that is no array, which is this one. `__del__` may run in any thread, in the middle
    of anything, and so does nothing but append to two deques.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_freed", "_mapping", "_released", "_slot", "_taken")

    def __init__(self, slot: int, mapping: Mapping, freed: deque[int], released: deque[int]) -> None:
        self._mapping = mapping  # outlives the lane if need be
        self._slot, self._freed = slot, freed
        self._taken, self._released = mapping.size, released
        self.__array_interface__ = mapping.__array_interface__

    def __del__(self) -> None:
        self._freed.append(self._slot)
        self._released.append(self._taken)


@final
class Budget:
    """Bytes and slots of shared memory that results may hold at once, over all lanes of a pool. Any thread.

    `max_idle_bytes` bounds the free slots of each lane; None keeps what a steady flow uses again.
    """

    def __init__(self, max_bytes: int, max_idle_bytes: int | None = None) -> None:
        self.max_bytes, self.max_idle_bytes = max_bytes, max_idle_bytes
        self.released: deque[int] = deque()
        self._lock = renewed_lock(self, "_lock", threading.Lock)
        self._held_bytes = 0
        self._num_held = 0

    def admit(self, num_bytes: int) -> bool:
        """Whether a result may hold `num_bytes` more; True counts them as held until a lease releases them."""
        with self._lock:
            self._settle()
            if self._held_bytes + num_bytes > self.max_bytes or self._num_held >= _MAX_SLOTS:
                return False
            self._held_bytes += num_bytes
            self._num_held += 1
            return True

    @property
    def held_bytes(self) -> int:
        """Bytes of slots that live results hold now."""
        with self._lock:
            self._settle()
            return self._held_bytes

    def _settle(self) -> None:
        while self.released:
            self._held_bytes -= self.released.popleft()
            self._num_held -= 1


@final
class SlotsOut:
    """The sending side: makes slots, fills free ones, makes another when none fits. One thread."""

    def __init__(self, announce: Callable[[int, int, int], None], max_idle_bytes: int | None = None) -> None:
        self._announce = announce  # (slot, size, descriptor): before the first message that names the slot
        self._max_idle_bytes = max_idle_bytes
        self._slots: dict[int, Bytes] = {}
        self._free: dict[int, int] = {}  # slot -> size, least recently freed first
        self._next = 0
        self._fewest_free: dict[int, int] | None = None
        self._num_messages = 0

    def take(self, num_bytes: int) -> tuple[int, Bytes]:
        """A slot of at least `num_bytes`, and its memory. OSError when the system has no more."""
        fitting = [(size, slot) for slot, size in self._free.items() if num_bytes <= size <= 4 * num_bytes + _PAGE]
        slot = min(fitting)[1] if fitting else self._make(num_bytes)
        self._free.pop(slot, None)
        if self._fewest_free is not None:
            self._fewest_free.pop(slot, None)
        return slot, self._slots[slot]

    def give_back(self, slots: list[int]) -> None:
        """The other side has let go of these."""
        for slot in slots:
            self._free[slot] = self._slots[slot].nbytes

    def trim(self) -> list[int]:
        """Called once a message: slots that are too much; they are gone.

        Where free ones are bounded, those beyond: one lane's slots are of no use to another, so without it each keeps
        as many as it ever had out, several times what its stage may hold. Others where they lay free all the while,
        now and then: what a steady flow reuses stays mapped, since writing 40 MB into mapped pages takes 2 ms, into
        fresh ones 19-33 (LANES.md).
        """
        self._num_messages += 1
        idle = [] if self._max_idle_bytes is None else self._beyond(self._max_idle_bytes)
        if self._num_messages % _TRIM_EVERY == 0:
            idle += [slot for slot in self._fewest_free or () if slot in self._free]
        for slot in idle:
            self._free.pop(slot, None)
            self._slots.pop(slot, None)
        if self._num_messages % _TRIM_EVERY == 0:
            self._fewest_free = dict(self._free)
        return idle

    def _beyond(self, max_bytes: int) -> list[int]:
        idle, num_bytes = list[int](), sum(self._free.values())
        for slot, size in list(self._free.items())[:-1]:
            if num_bytes <= max_bytes:
                break
            num_bytes -= size
            idle.append(slot)
            del self._free[slot]
        return idle

    def _make(self, num_bytes: int) -> int:
        # An eighth of headroom: the next result, a little larger, fits too.
        size = -(-(num_bytes + num_bytes // 8) // _PAGE) * _PAGE
        fd = os.memfd_create("lightning_intune", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            memory = np.asarray(Mapping(fd, size))
            slot, self._next = self._next, self._next + 1
            self._announce(slot, size, fd)
        finally:
            os.close(fd)
        self._slots[slot] = memory
        return slot


@final
class SlotsIn:
    """The receiving side: maps each slot once, hands out views, and notes what has become free. One thread."""

    def __init__(self, budget: Budget, copy_below_bytes: int) -> None:
        self._budget, self._copy_below = budget, copy_below_bytes
        self._mappings: dict[int, Mapping] = {}
        self._freed: deque[int] = deque()

    def add(self, slot: int, size: int, fd: int) -> None:
        """Map an announced slot; the descriptor is closed."""
        try:
            self._mappings[slot] = Mapping(fd, size)
        finally:
            os.close(fd)

    def drop(self, slots: list[int]) -> None:
        """The sender has given these up."""
        for slot in slots:
            del self._mappings[slot]

    def drain_freed(self) -> list[int]:
        """Slots that became free since the last call."""
        freed: list[int] = []
        while self._freed:
            freed.append(self._freed.popleft())
        return freed

    def view(self, slot: int, num_bytes: int) -> Bytes:
        """The first `num_bytes` of the slot: in place, and the slot is taken until the last view of it dies.

        A copy in private memory instead for what is small or over the budget; the slot is free at once,
        so a user who keeps every batch never makes a lane wait.
        """
        mapping = self._mappings[slot]
        if num_bytes < self._copy_below or not self._budget.admit(mapping.size):
            private = np.empty(num_bytes, np.uint8)
            np.copyto(private, np.asarray(mapping)[:num_bytes])  # releases the GIL
            self._freed.append(slot)
            return private
        return np.asarray(Lease(slot, mapping, self._freed, self._budget.released))[:num_bytes]

    def discard(self, slot: int) -> None:
        """The slot's content is not wanted."""
        self._freed.append(slot)


def layout(sizes: list[int]) -> tuple[list[int], int]:
    """Aligned offsets for buffers of `sizes` laid end to end, and the bytes they take in all.

    >>> layout([10, 64, 1])
    ([0, 64, 128], 129)
    """
    offsets: list[int] = []
    end = 0
    for size in sizes:
        start = -(-end // ALIGN) * ALIGN
        offsets.append(start)
        end = start + size
    return offsets, end


def fill(memory: Bytes, offset: int, source: Any) -> None:
    """Copy the bytes-like `source` to `offset` of `memory`, without the GIL."""
    flat = np.frombuffer(source, np.uint8)
    np.copyto(memory[offset : offset + flat.nbytes], flat)
