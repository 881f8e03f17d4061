"""How the ranks of a ring find each other: an address, and proof that it is the right one who calls."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import psutil

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.ring import Kind, RingError

_HELLO = struct.Struct("!8sI32s")
_MAGIC, _WELCOME = b"litring1", b"+"
_MAX_CALLERS = 32
"""Who have not said all yet; one more sends the first of them away."""
_POLL_S = 0.01


@final
@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a rank listens, and why there."""

    host: str
    why: str


def own_address(interface: str | None, store: Any, environ: Mapping[str, str]) -> Address:
    """An address of this host for other ranks to call.

    That of `interface`, which is a name such as eth0, or an address; else that of the first interface in
    GLOO_SOCKET_IFNAME; else the one from which this host reaches the job's TCP store or MASTER_ADDR; else the loopback.
    ConfigError for an interface that this host has not. OSError where the store's host has no name here.
    """
    if interface is not None:
        return _of_interface(interface, "interface=")
    if named := environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0].strip():
        return _of_interface(named, "GLOO_SOCKET_IFNAME=")
    while (inner := getattr(store, "underlying_store", None)) is not None:
        store = inner
    master = getattr(store, "host", None) or environ.get("MASTER_ADDR")
    if not master:
        return Address(host="127.0.0.1", why="no TCP store, MASTER_ADDR or interface= is set")
    family, kind, protocol, _, there = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)  # of a datagram socket: finds the route, and sends nothing
        return Address(host=probe.getsockname()[0], why=f"from which it reaches {master}")


def _of_interface(name: str, setting: str) -> Address:
    found = psutil.net_if_addrs()
    known = [one.address for one in found.get(name, []) if one.family in (socket.AF_INET, socket.AF_INET6)]
    fitting = sorted((host for host in known if "%" not in host), key=lambda host: ":" in host)  # IPv4 first
    if fitting:
        return Address(host=fitting[0], why=f"{setting}{name}")
    if any(one.address == name for addresses in found.values() for one in addresses):
        return Address(host=name, why=f"{setting}{name}")
    raise ConfigError(
        f"overlap: {setting}{name} is no network interface or address of this host, so the ring cannot listen there. "
        f"Name one of {', '.join(sorted(found))}, or an address of theirs."
    )


@final
class Rendezvous:
    """Makes one rank's two connections, with the help of a store that all ranks share.

    Each rank listens at its own address until the previous one has called, no longer, and lets in who knows the secret
    that it put into the store. What is sent is not encrypted, as with gloo and NCCL.
    """

    def __init__(
        self, store: Any, address: Address, *, rank: int, world_size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._address, self._clock = store, address, clock
        self._rank, self._next, self._previous = rank, (rank + 1) % world_size, (rank - 1) % world_size

    def connect(self, opened: ExitStack, *, until_s: float) -> tuple[socket.socket, socket.socket]:
        """The connection to the next rank and that from the previous one, both in `opened`.

        RingError where one does not come; then everything is left open, for `opened` to be closed once this rank has
        said why it gives up: others take one that closes without a word for dead.
        """
        host = self._address.host
        secret = secrets.token_bytes(32)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = opened.enter_context(socket.create_server((host, 0), family=family, backlog=_MAX_CALLERS))
        told = {"at": [host, listener.getsockname()[1]], "of": socket.gethostname(), "secret": secret.hex()}
        self._store.set(f"at/{self._rank}", json.dumps(told))
        to_next = opened.enter_context(self._call(until_s))
        from_previous = opened.enter_context(self._let_in(listener, secret, until_s))
        listener.close()
        self._await_welcome(to_next, until_s)
        for end in (to_next, from_previous):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return to_next, from_previous

    def _call(self, until_s: float) -> socket.socket:
        """Call the next rank, and say who calls."""
        key = f"at/{self._next}"
        while not self._store.check([key]):  # `get` would keep the store from this process's other threads
            self._left_s(until_s, self._next)
            time.sleep(_POLL_S)
        there = json.loads(self._store.get(key))
        host, port = there["at"]
        if ipaddress.ip_address(host).is_loopback and there["of"] != socket.gethostname():
            raise ConfigError(
                f"overlap: rank {self._next} listens on its loopback, {host}, which host {socket.gethostname()} of "
                f"rank {self._rank} cannot reach. Give host_ring interface=, or set GLOO_SOCKET_IFNAME, on every host."
            )
        try:
            end = socket.create_connection(
                (host, port), self._left_s(until_s, self._next), source_address=(self._address.host, 0)
            )
        except OSError as error:
            raise self._ended(self._next, f"at {host} port {port}: {error}") from error
        try:
            end.sendall(_HELLO.pack(_MAGIC, self._rank, bytes.fromhex(there["secret"])))
        except OSError as error:
            end.close()
            raise self._ended(self._next, str(error)) from error
        return end

    def _let_in(self, listener: socket.socket, secret: bytes, until_s: float) -> socket.socket:
        """The previous rank's call. Who says anything else, or nothing, is turned away."""
        awaited = _HELLO.pack(_MAGIC, self._previous, secret)
        heard: dict[socket.socket, bytes] = {}
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector, ExitStack() as strangers:
            selector.register(listener, selectors.EVENT_READ)
            strangers.callback(lambda: [one.close() for one in heard])
            while True:
                for key, _ in selector.select(self._left_s(until_s, self._previous)):
                    if key.fileobj is listener:
                        _pick_up(listener, heard, selector)
                        continue
                    caller = next((one for one in heard if one is key.fileobj), None)
                    if caller is None or not _listen(caller, heard, awaited):
                        continue
                    selector.unregister(caller)
                    said = heard.pop(caller)
                    if hmac.compare_digest(said, awaited):
                        return self._welcome(caller)
                    caller.close()

    def _welcome(self, caller: socket.socket) -> socket.socket:
        try:
            caller.setblocking(True)
            caller.sendall(_WELCOME)
        except OSError as error:
            caller.close()
            raise self._ended(self._previous, str(error)) from error
        return caller

    def _await_welcome(self, end: socket.socket, until_s: float) -> None:
        end.settimeout(self._left_s(until_s, self._next))
        try:
            if end.recv(1) == _WELCOME:
                return
        except TimeoutError as error:
            raise self._late(self._next) from error
        except OSError as error:
            raise self._ended(self._next, str(error)) from error
        raise self._ended(self._next, "closed its end before it let this one in")

    def _left_s(self, until_s: float, waits_for: int) -> float:
        left_s = until_s - self._clock()
        if left_s <= 0:
            raise self._late(waits_for)
        return left_s

    def _late(self, peer: int) -> RingError:
        return RingError(Kind.LATE, peer, peer, f"waited for rank {peer} for too long")

    def _ended(self, peer: int, text: str) -> RingError:
        return RingError(Kind.ENDED, peer, peer, f"rank {peer}: {text}")


def _pick_up(listener: socket.socket, heard: dict[socket.socket, bytes], selector: selectors.BaseSelector) -> None:
    try:
        caller, _ = listener.accept()
    except (BlockingIOError, ConnectionError):  # it has hung up again
        return
    caller.setblocking(False)
    if len(heard) >= _MAX_CALLERS:
        first = next(iter(heard))
        selector.unregister(first)
        del heard[first]
        first.close()
    heard[caller] = b""
    selector.register(caller, selectors.EVENT_READ)


def _listen(caller: socket.socket, heard: dict[socket.socket, bytes], awaited: bytes) -> bool:
    """Whether the caller has said all it will."""
    try:
        said = caller.recv(len(awaited) - len(heard[caller]))
    except BlockingIOError:
        return False
    except OSError:
        said = b""
    heard[caller] += said
    return not said or len(heard[caller]) == len(awaited)
