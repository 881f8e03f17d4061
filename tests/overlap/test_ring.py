"""Parcels around a ring of sockets, how its ranks meet, and who is blamed when it breaks; ranks are threads here."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.rendezvous import Address, Rendezvous, own_address
from lightning_intune.overlap.ring import _HEADER, Kind, Ring, RingError
from lightning_intune.overlap.roll_call import RollCall
from tests.flow.ranks import at_once
from tests.overlap.ring_ranks import num_sockets

SOON_S = 30.0


def pairs(num: int, buffer_bytes: int) -> list[tuple[socket.socket, socket.socket]]:
    made = [socket.socketpair() for _ in range(num)]
    for end in (end for pair in made for end in pair):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
    return made


def rings(num: int, buffer_bytes: int = 4096) -> list[Ring]:
    made = pairs(num, buffer_bytes)
    return [Ring(made[rank][0], made[rank - 1][1], rank=rank, world_size=num) for rank in range(num)]


def content(sender: int, to: int, call: int, num_bytes: int) -> bytes:
    return random.Random(f"{sender} {to} {call}").randbytes(num_bytes)


SIZES = st.sampled_from([0, 1, 5, 4000, 70_000])


@settings(max_examples=60)
@given(num=st.integers(2, 5), num_calls=st.integers(1, 3), seed=st.integers(0, 999), data=st.data())
def test_every_parcel_arrives_whole_whatever_its_size_and_whoever_is_late(
    num: int, num_calls: int, seed: int, data: st.DataObject
) -> None:
    """Parcels of up to 70 kB through buffers of 4: each rank must read while it sends, and hand on while it reads."""
    table = st.lists(st.lists(SIZES, min_size=num, max_size=num), min_size=num, max_size=num)
    calls = data.draw(st.lists(table, min_size=num_calls, max_size=num_calls))
    made = rings(num)

    def work(rank: int) -> list[list[bytes]]:
        rng, got = random.Random(f"{seed}/{rank}"), []
        for call, sizes in enumerate(calls):
            time.sleep(rng.choice([0.0, 0.0, 0.002]))
            parcels = [memoryview(content(rank, to, call, sizes[rank][to])) for to in range(num)]
            rooms = [memoryview(bytearray(row[rank])) for row in sizes]
            made[rank].exchange(call, parcels, rooms, until_s=time.monotonic() + SOON_S)
            got.append([bytes(room) for room in rooms])
        made[rank].close()  # others may still be at their last call
        return got

    for rank, got in enumerate(at_once(list(range(num)), work)):
        for call, sizes in enumerate(calls):
            for sender in set(range(num)) - {rank}:
                assert got[call][sender] == content(sender, rank, call, sizes[sender][rank])


def failing(ring: Ring, sizes: list[int], until_s: float) -> RingError:
    bodies = [memoryview(bytearray(size)) for size in sizes]
    with pytest.raises(RingError) as raised:
        ring.exchange(7, bodies, [memoryview(bytearray(size)) for size in sizes], until_s=until_s)
    ring.close()
    return raised.value


def ring_of(rank: int, world_size: int) -> tuple[Ring, socket.socket, socket.socket]:
    """One rank's ring, and the other ends: the next rank's, and the previous one's."""
    (to_next, there), (before, from_previous) = pairs(2, 4096)
    return Ring(to_next, from_previous, rank=rank, world_size=world_size), there, before


def test_a_neighbour_that_has_closed_is_told_from_one_that_is_late() -> None:
    ring, there, before = ring_of(0, 3)
    with there, before:
        late = failing(ring, [0, 0, 0], time.monotonic() - 1)
        assert (late.kind, late.rank, late.waits_for) == (Kind.LATE, 2, 2)
    ring, there, before = ring_of(0, 3)
    with there:
        before.close()
        ended = failing(ring, [0, 0, 0], time.monotonic() + SOON_S)
        assert (ended.kind, ended.rank, ended.waits_for) == (Kind.ENDED, 2, 2)
    ring, there, before = ring_of(0, 3)
    with before:
        there.close()
        ended = failing(ring, [0, 0, 0], time.monotonic() + SOON_S)
        assert (ended.kind, ended.rank, ended.waits_for) == (Kind.ENDED, 1, 2)  # and it waits for what 2 hands on


def test_a_parcel_of_another_size_or_call_is_not_taken() -> None:
    for label, rank, text in (
        ((7, 1, 0, 5), 1, "rank 1 sent 5 bytes where rank 0 awaited 4"),
        ((6, 1, 0, 4), 1, "handed on Label(call=6, sender=1, to=0, num_bytes=4) in call 7"),
        ((7, 0, 1, 4), 1, "handed on"),  # its own, come round
        ((7, 9, 0, 4), 1, "handed on"),
    ):
        ring, there, before = ring_of(0, 2)
        with there, before:
            before.sendall(_HEADER.pack(*label))
            wrong = failing(ring, [0, 4], time.monotonic() + SOON_S)
            assert (wrong.kind, wrong.rank) == (Kind.WRONG, rank)
            assert text in str(wrong)


def test_a_parcel_that_has_gone_past_its_rank_is_not_handed_on() -> None:
    ring, there, before = ring_of(0, 3)
    with there, before:
        before.sendall(_HEADER.pack(7, 1, 2, 4))  # from 1 by way of 2, whose it was
        wrong = failing(ring, [0, 4, 4], time.monotonic() + SOON_S)
    assert (wrong.kind, wrong.rank) == (Kind.WRONG, 2)


def test_a_rank_that_trickles_is_late_too() -> None:
    """Something comes before every look at the clock, but never enough."""
    ring, there, before = ring_of(0, 2)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        before.send(b"\0")
        return now[0]

    ring._clock = clock
    with there, before:
        before.sendall(_HEADER.pack(7, 1, 0, 4000))
        late = failing(ring, [0, 4000], until_s=50.0)
    assert (late.kind, late.rank) == (Kind.LATE, 1)


def meet(store: Any, rank: int, world_size: int = 2) -> tuple[socket.socket, socket.socket]:
    address = Address(host="127.0.0.1", why="a test")
    meeting = Rendezvous(store, address, rank=rank, world_size=world_size)
    with ExitStack() as opened:
        ends = meeting.connect(opened, until_s=time.monotonic() + SOON_S)
        opened.pop_all()
    return ends


def answer(end: socket.socket) -> bytes:
    try:
        return end.recv(1)
    except ConnectionError:  # closed before it had read all
        return b""


def test_strangers_are_turned_away_and_the_ranks_meet_all_the_same() -> None:
    store = dist.HashStore()

    def second(_: int) -> list[bytes]:
        store.wait(["at/0"])
        told = json.loads(store.get("at/0"))
        host, port = told["at"]
        silent = socket.create_connection((host, port), SOON_S)
        brief = socket.create_connection((host, port), SOON_S)
        brief.close()
        forged = socket.create_connection((host, port), SOON_S)
        forged.sendall(b"litring1" + (1).to_bytes(4, "big") + bytes(32))
        of_another_rank = socket.create_connection((host, port), SOON_S)
        of_another_rank.sendall(b"litring1" + (0).to_bytes(4, "big") + bytes.fromhex(told["secret"]))
        ends = meet(store, 1)  # calls last
        answers = [answer(one) for one in (silent, forged, of_another_rank)]
        ends[0].sendall(b"to 0")
        for end in (silent, forged, of_another_rank, *ends):
            end.close()
        return answers

    def first(_: int) -> bytes:
        ends = meet(store, 0)
        said = ends[1].recv(9)
        for end in ends:
            end.close()
        return said

    said, answers = at_once([0, 1], lambda rank: (first if rank == 0 else second)(rank))
    assert (said, answers) == (b"to 0", [b"", b"", b""])


def test_who_does_not_come_to_the_meeting_is_named_and_what_was_opened_can_be_closed() -> None:
    before = num_sockets()
    meeting = Rendezvous(dist.HashStore(), Address(host="127.0.0.1", why="a test"), rank=0, world_size=3)
    with ExitStack() as opened:
        with pytest.raises(RingError, match="waited for rank 1") as raised:
            meeting.connect(opened, until_s=time.monotonic() - 1)
        assert raised.value.kind is Kind.LATE
        assert num_sockets() == before + 1  # it listens until it has said why it gives up
    assert num_sockets() == before


def test_another_hosts_loopback_is_refused_with_what_to_set() -> None:
    store = dist.HashStore()
    store.set("at/1", json.dumps({"at": ["127.0.0.1", 9], "of": "elsewhere", "secret": "00" * 32}))
    with pytest.raises(ConfigError, match=r"rank 1 listens on its loopback.*interface=, or set GLOO_SOCKET_IFNAME"):
        meet(store, 0)


def test_the_address_is_the_interfaces_or_the_one_that_reaches_the_store() -> None:
    store = dist.TCPStore("localhost", 0, 1, is_master=True, wait_for_workers=False)
    inner = dist.PrefixStore("a", dist.PrefixStore("b", store))
    loopbacks = {"127.0.0.1", "::1"}
    assert own_address("lo", None, {}) == Address(host="127.0.0.1", why="interface=lo")
    assert own_address("127.0.0.1", None, {}).host == "127.0.0.1"
    assert own_address(None, inner, {"GLOO_SOCKET_IFNAME": "lo,eth9"}).why == "GLOO_SOCKET_IFNAME=lo"
    assert own_address(None, inner, {"MASTER_ADDR": "203.0.113.1"}).why == "from which it reaches localhost"
    assert own_address(None, inner, {}).host in loopbacks
    assert own_address(None, dist.HashStore(), {"MASTER_ADDR": "127.0.0.1"}).why == "from which it reaches 127.0.0.1"
    assert own_address(None, dist.HashStore(), {}).host == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"interface=warp0 is no network interface.*Name one of .*lo"):
        own_address("warp0", None, {})


def rolls(store: Any, num: int, sleep: Callable[[float], None], clock: Callable[[], float]) -> list[RollCall]:
    return [RollCall(store, rank=n, world_size=num, timeout_s=5, clock=clock, sleep=sleep) for n in range(num)]


@given(num=st.integers(2, 8), data=st.data())
def test_a_rank_that_stands_still_is_found_from_rank_to_rank_in_whatever_order_they_give_up(
    num: int, data: st.DataObject
) -> None:
    """All have come to the call; each waits for the one before it, so only the last of the chain says nothing."""
    at_fault = data.draw(st.integers(0, num - 1))
    waiting = data.draw(st.permutations([rank for rank in range(num) if rank != at_fault]))
    now, told = [0.0], dict[int, str]()

    def give_up(rank: int) -> None:
        previous = (rank - 1) % num
        told[rank] = made[rank].judge(3, RingError(Kind.LATE, previous, previous, ""), lambda: None)

    def sleep(wait_s: float) -> None:  # while one waits, the next gives up
        now[0] += wait_s
        if waiting:
            give_up(waiting.pop())

    made = rolls(dist.HashStore(), num, sleep, lambda: now[0])
    for roll in made:
        roll.come(3)
    while waiting:
        give_up(waiting.pop())
    assert set(told.values()) == {f"rank {at_fault} had come, and has ended or stood still since"}
    assert len(told) == num - 1


@given(num=st.integers(3, 8), data=st.data())
def test_who_waits_in_the_call_before_for_the_one_at_fault_is_not_blamed_with_it(num: int, data: st.DataObject) -> None:
    """Some have what they need of a call and wait in the next; the others wait in it. They give up in any order."""
    at_fault = data.draw(st.integers(0, num - 1))
    calls = [data.draw(st.integers(3, 4)) if rank != at_fault else 3 for rank in range(num)]
    waiting = data.draw(st.permutations([rank for rank in range(num) if rank != at_fault]))
    now, told = [0.0], dict[int, str]()

    def give_up(rank: int) -> None:
        previous = (rank - 1) % num
        told[rank] = made[rank].judge(calls[rank], RingError(Kind.LATE, previous, previous, ""), lambda: None)

    def sleep(wait_s: float) -> None:  # while one waits, the next gives up
        now[0] += wait_s
        if waiting:
            give_up(waiting.pop())

    made = rolls(dist.HashStore(), num, sleep, lambda: now[0])
    for roll, call in zip(made, calls, strict=True):
        roll.come(call)
    while waiting:
        give_up(waiting.pop())
    assert len(told) == num - 1
    [verdict] = set(told.values())
    assert verdict.startswith(f"rank {at_fault} ")


def test_a_verdict_is_the_same_on_all_ranks_and_names_the_first_cause() -> None:
    def never(_: float) -> None:
        raise AssertionError("nobody has to wait")

    def judged(come: list[int], *errors: tuple[int, RingError]) -> list[str]:
        made = rolls(dist.HashStore(), len(come), never, lambda: 0.0)
        for roll, call in zip(made, come, strict=True):
            roll.come(call)
        closed: list[int] = []
        out = [made[rank].judge(3, error, lambda rank=rank: closed.append(rank)) for rank, error in errors]
        assert closed == [rank for rank, _ in errors]
        return out

    # 1 has ended: its neighbours see so, and 3 sees only that 2 has closed, which said before whom it waited for.
    gone = [
        (2, RingError(Kind.ENDED, 1, 1, "")),
        (3, RingError(Kind.ENDED, 2, 2, "")),
        (0, RingError(Kind.ENDED, 1, 3, "")),
    ]
    text = "rank 1 had come, and has ended since, or its connection broke"
    assert judged([3, 3, 3, 3], *gone) == [text] * 3
    assert judged([3, 2, 3, 3], *gone) == ["rank 1 did not come, and its connection is closed: it has ended"] * 3
    late = [(2, RingError(Kind.LATE, 1, 1, "")), (1, RingError(Kind.ENDED, 2, 0, ""))]
    assert judged([3, 2, 3, 3], *late) == ["rank 1 did not come within 5 s, or had ended"] * 2
    own = [(0, RingError(Kind.OWN, 0, 0, "OSError: no room")), (1, RingError(Kind.ENDED, 0, 0, ""))]
    assert judged([3, 3], *own) == ["rank 0 failed: OSError: no room"] * 2


def test_where_all_wait_for_each_other_nobody_is_blamed() -> None:
    now = [0.0]

    def sleep(wait_s: float) -> None:
        now[0] += wait_s

    made = rolls(dist.HashStore(), 2, sleep, lambda: now[0])
    for roll in made:
        roll.come(1)
    made[1]._store.set("broke/1", "0")
    text = made[0].judge(1, RingError(Kind.LATE, 1, 1, ""), lambda: None)
    assert text == "every rank had come, so the network between them broke, or takes longer than 5 s"


def test_a_neighbour_that_gave_up_for_anothers_sake_is_not_blamed_itself() -> None:
    now = [0.0]

    def sleep(wait_s: float) -> None:
        now[0] += wait_s

    made = rolls(dist.HashStore(), 4, sleep, lambda: now[0])
    for roll in made:
        roll.come(1)
    made[2]._store.set("broke/2", "1")  # it waited for 1, and has not said more yet
    text = made[3].judge(1, RingError(Kind.ENDED, 2, 2, ""), lambda: None)
    assert text == "rank 1 had come, and has ended or stood still since"
