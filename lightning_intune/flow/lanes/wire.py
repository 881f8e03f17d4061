"""Messages between a lane and its process: pickled values, whose large buffers lie in shared slots."""

from __future__ import annotations

import ctypes
import io
import marshal
import pickle
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, final

from lightning_intune.flow.lanes.arena import Budget, Bytes, SlotsIn, SlotsOut, fill, layout
from lightning_intune.flow.lanes.reducers import UnpicklableError, make_pickler

_T = TypeVar("_T")

# Kinds of message. The first two belong to the channel itself.
SLOT, ELSEWHERE = 0, 1
RUN, DONE, AGAIN, READY, BROKEN, IMPORTED = 2, 3, 4, 5, 6, 7

IN_BAND_BELOW_BYTES = 4096  # a smaller buffer travels in the pickle
COPY_BELOW_BYTES = 128 * 1024  # a smaller result is copied out of its slot: 10 us, and no mapping to keep
_STREAM_IN_SLOT_BYTES = 16 * 1024
_MAX_PACKET_BYTES = 64 * 1024  # a packet is bounded by the socket's send buffer (208 KiB by default)

_NOWAIT = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
_send = ctypes.PyDLL(None).send
_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
_send.restype = ctypes.c_ssize_t
_LOOK_EVERY = struct.pack("@ll", 0, 250_000)  # a timeval
# A message that is one small pickle: flag (which marshal never begins with), kind, whole, and a note of three floats.
_SHORT, _SHORT_FLAG = struct.Struct("<BB?ddd"), 0

# (pickle stream or None when it is the slot's first buffer, slot or -1, bytes used, offsets, sizes)
_Part = tuple[bytes | None, int, int, list[int], list[int]]


class PeerGoneError(Exception):
    """The other side has closed the channel or is dead."""


class UnreadError(PeerGoneError):
    """And it had not read the message that was sent last, so that it cannot have died of it."""


@final
@dataclass(frozen=True)
class Unloaded:
    """Stands for a value that came over but could not be unpickled."""

    error: Exception


@final
class Message(NamedTuple):  # made for every message: a dataclass takes four times as long
    """One message taken off a channel."""

    kind: int
    whole: bool
    """The values were pickled in one piece; if that failed to load, `values` is one `Unloaded`."""
    values: list[Any]
    note: Any


@final
class Channel:
    """One end of a lane's socket. One thread sends and receives.

    Both ends are alike: each fills slots of its own and maps those of the other. A socket of type
    SEQPACKET keeps messages apart, so there are no leftovers to carry (LANES.md, traps).
    """

    def __init__(
        self,
        sock: socket.socket,
        budget: Budget,
        *,
        by_value: bool = False,
        is_dead: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sock, self._fd, self._by_value = sock, sock.fileno(), by_value
        self._out = SlotsOut(self._announce, budget.max_idle_bytes)
        self._in = SlotsIn(budget, COPY_BELOW_BYTES)
        self._packet = bytearray(_MAX_PACKET_BYTES)
        self._view = memoryview(self._packet)
        # The end of a process closes its socket and wakes us; unless a grandchild holds it too. So look now and then.
        self._is_dead = is_dead
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LOOK_EVERY)
        self._file = io.BytesIO()
        self._buffers: list[memoryview] = []
        self._num_modules = -1
        self._pickler: pickle.Pickler
        self._each = False  # the last whole chunk was too large to travel in one piece

    def post(
        self,
        kind: int,
        values: Sequence[Any],
        note: Any = None,
        *,
        each: bool = False,
        instead: Callable[[UnpicklableError], Any] | None = None,
    ) -> dict[int, UnpicklableError]:
        """Send `values`. One that cannot be pickled is left out, or replaced by what `instead` makes of its error.

        Returns the errors by index. Raises PeerGoneError. Several small values go in one pickle, large or
        faulty ones each in their own (always with `each`).
        """
        whole, failures = len(values) > 1, dict[int, UnpicklableError]()
        parts: list[_Part] | None = None
        if not whole:
            parts = self._pack_together(values[0], whole) if values else []
        elif not each and not self._each:
            parts = self._pack_together(list(values), whole)
        freed, dropped = self._in.drain_freed(), self._out.trim()
        if parts and not freed and not dropped and type(note) is tuple and (stream := parts[0][0]) and parts[0][1] < 0:
            self._send(_SHORT.pack(_SHORT_FLAG, kind, whole, *note) + stream)
            return failures
        if parts is None:
            whole, parts = False, self._pack_each(values, failures, instead)
        packet = marshal.dumps((kind, whole, parts, freed, dropped, note))
        if len(packet) > _MAX_PACKET_BYTES:
            slot, memory = self._out.take(len(packet))
            fill(memory, 0, packet)
            packet = marshal.dumps((ELSEWHERE, slot, len(packet)))
        self._send(packet)
        return failures

    def take(self) -> Message:
        """Wait for the next message. Raises PeerGoneError."""
        while True:
            num_bytes = self._receive()
            if self._packet[0] == _SHORT_FLAG:
                _, kind, whole, *note = _SHORT.unpack_from(self._packet)
                return Message(kind, whole, self._load_short(self._view[_SHORT.size : num_bytes], whole), note)
            packet = marshal.loads(self._view[:num_bytes])
            if packet[0] == SLOT:
                self._in.add(packet[1], packet[2], self._receive_fd())
                continue
            if packet[0] == ELSEWHERE:
                packet = marshal.loads(self._in.view(packet[1], packet[2]).data)
            kind, whole, parts, freed, dropped, note = packet
            self._out.give_back(freed)
            values = [self._load(part) for part in parts]
            self._in.drop(dropped)
            if whole and not isinstance(values[0], Unloaded):
                values = values[0]
            return Message(kind, whole, values, note)

    # ---- sending ----

    def _pack_together(self, value: Any, is_chunk: bool) -> list[_Part] | None:
        """`value` in one pickle; None if it cannot be pickled, or is a chunk whose values want slots of their own."""
        try:
            stream, buffers = self._pickle(value)
            if not is_chunk or sum(buffer.nbytes for buffer in buffers) <= COPY_BELOW_BYTES:
                return [self._place(stream, buffers)]
        except PeerGoneError:
            raise
        except Exception:  # noqa: BLE001 - packing each by itself finds the one at fault
            return None
        self._each = True
        return None

    def _pack_each(
        self,
        values: Sequence[Any],
        failures: dict[int, UnpicklableError],
        instead: Callable[[UnpicklableError], Any] | None,
    ) -> list[_Part]:
        parts: list[_Part] = []
        for index, value in enumerate(values):
            try:
                parts.append(self._place(*self._pickle(value)))
            except PeerGoneError:
                raise
            except Exception as error:  # noqa: BLE001 - `__reduce__` is the user's code
                failures[index] = UnpicklableError(f"{type(value).__name__} cannot be pickled: {error}")
                if instead is not None:
                    parts.append(self._place(*self._pickle(instead(failures[index]))))
        if len(values) > 1 and sum(part[2] for part in parts) <= COPY_BELOW_BYTES:
            self._each = False
        return parts

    def _pickle(self, value: Any) -> tuple[memoryview | bytes, list[memoryview]]:
        if self._num_modules != len(sys.modules):  # an import may have brought torch or Arrow into play
            self._pickler = make_pickler(self._file, self._keep_buffer, by_value=self._by_value)
            self._num_modules = len(sys.modules)
        self._file.seek(0)
        self._file.truncate()
        self._buffers = []
        try:
            self._pickler.dump(value)
        except BaseException:
            self._num_modules, self._file = -1, io.BytesIO()  # a pickler that failed half way is not used again
            raise
        finally:
            self._pickler.clear_memo()
        buffers, self._buffers = self._buffers, []
        if self._file.tell() < _STREAM_IN_SLOT_BYTES:
            return self._file.getvalue(), buffers
        stream, self._file, self._num_modules = self._file.getbuffer(), io.BytesIO(), -1
        return stream, buffers

    def _keep_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: pickle itself says so, or copes
        if raw.nbytes < IN_BAND_BELOW_BYTES:
            return True
        self._buffers.append(raw)
        return False

    def _place(self, stream: memoryview | bytes, buffers: list[memoryview]) -> _Part:
        if isinstance(stream, memoryview):
            buffers = [stream, *buffers]
        if not buffers:
            assert isinstance(stream, bytes)
            return stream, -1, 0, [], []
        sizes = [buffer.nbytes for buffer in buffers]
        offsets, end = layout(sizes)
        slot, memory = self._out.take(end)
        for offset, buffer in zip(offsets, buffers, strict=True):
            fill(memory, offset, buffer)
        return stream if isinstance(stream, bytes) else None, slot, end, offsets, sizes

    def _announce(self, slot: int, size: int, fd: int) -> None:
        self._send(marshal.dumps((SLOT, slot, size)))
        try:
            socket.send_fds(self._sock, [b"\0"], [fd])
        except OSError as error:
            raise _gone(error) from error

    def _send(self, packet: bytes) -> None:
        # Without giving up the GIL: it would go to another thread, and getting it back costs a context switch.
        # A small packet does not block; the one that would is sent the usual way.
        if _send(self._fd, packet, len(packet), _NOWAIT) == len(packet):
            return
        try:
            self._sock.send(packet)
        except OSError as error:
            raise _gone(error) from error

    # ---- receiving ----

    def _receive(self) -> int:
        num_bytes = self._once_there(self._sock.recv_into, self._packet)
        if num_bytes == 0:
            raise PeerGoneError
        return num_bytes

    def _receive_fd(self) -> int:
        """The descriptor that follows an announcement: on a busy machine later than one look takes."""
        _, fds, _, _ = self._once_there(socket.recv_fds, self._sock, 1, 1)
        if not fds:
            raise PeerGoneError
        return fds[0]

    def _once_there(self, receive: Callable[..., _T], *given: Any) -> _T:
        while True:
            try:
                return receive(*given)
            except BlockingIOError:
                if self._is_dead():
                    raise PeerGoneError from None
            except OSError as error:
                raise _gone(error) from error

    def _load_short(self, stream: memoryview, whole: bool) -> list[Any]:
        try:
            value = pickle.loads(stream)
        except Exception as error:  # noqa: BLE001 - `__setstate__` is the user's code
            return [Unloaded(error)]
        return value if whole else [value]

    def _load(self, part: _Part) -> Any:
        stream, slot, num_bytes, offsets, sizes = part
        try:
            if slot < 0:
                return pickle.loads(stream or b"")
            memory: Bytes = self._in.view(slot, num_bytes)
            buffers = [memory[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
            if stream is None:
                return pickle.loads(buffers[0].data, buffers=buffers[1:])
            return pickle.loads(stream, buffers=buffers)
        except Exception as error:  # noqa: BLE001 - `__setstate__` is the user's code
            return Unloaded(error)


def _gone(error: OSError) -> PeerGoneError:
    # The kernel knows: a pipe is broken when nobody can read it, a connection reset when it was closed on unread bytes.
    return UnreadError() if isinstance(error, BrokenPipeError | ConnectionResetError) else PeerGoneError()
