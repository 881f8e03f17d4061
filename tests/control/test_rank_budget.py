"""Ranks of one host that share its budget over a store: who gets what, who divides, and what a failure does."""

import json
import logging
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from lightning_intune.control.budget import BudgetReading
from lightning_intune.control.rank_budget import Place, RankBudget, among_ranks
from lightning_intune.control.shared_budget import Demand
from tests.control.played import Clock

GIB = 1 << 30


class Whole:
    def __init__(self, cpus=8.0):
        self.reading = BudgetReading(cpus=cpus, memory_bytes=GIB, memory_limit_bytes=8 * GIB)

    def read(self):
        return self.reading


class Host:
    """Ranks that take their turns one after the other, half a second each."""

    def __init__(self, num_ranks, store=None, pools=None, whole=None, **kwargs):
        self.store, self.clock, self.whole = store or HashStore(), Clock(), whole or Whole()
        pools = pools or ["all"] * num_ranks
        self.ranks = [
            RankBudget(
                self.whole, self.store, Place(rank=rank, host="h", cpu_pool=pools[rank]), clock=self.clock, **kwargs
            )
            for rank in range(num_ranks)
        ]

    def turn(self, needs, *, held=GIB, only=None):
        """Every rank (of `only`) reads, then tells; the CPUs they read, by rank."""
        read = {}
        self.clock.now += 0.5
        for rank in range(len(self.ranks)) if only is None else only:
            read[rank] = self.ranks[rank].read()
            self.ranks[rank].tell(Demand(cpus=needs[rank], memory_bytes=held))
        return [reading.cpus for reading in read.values()]


def test_until_anything_is_published_all_get_an_equal_part():
    host = Host(4)
    readings = [rank.read() for rank in host.ranks]
    assert [reading.cpus for reading in readings] == [2.0] * 4
    assert [reading.memory_limit_bytes for reading in readings] == [2 * GIB] * 4


def test_unequal_needs_get_unequal_shares_that_sum_to_the_machine():
    host = Host(2)
    for _ in range(3):
        cpus = host.turn([1.0, 20.0])
    assert cpus == [1.0, 7.0]
    assert sum(cpus) == host.whole.reading.cpus


@given(needs=st.lists(st.lists(st.floats(0.0, 30.0), min_size=3, max_size=3), min_size=3, max_size=8))
@settings(max_examples=25)
def test_shares_read_after_a_turn_sum_to_the_machine_and_nobody_starves(needs):
    host = Host(3)
    for each in needs:
        host.turn(each)
    readings = [rank.read() for rank in host.ranks]
    assert sum(reading.cpus for reading in readings) == pytest.approx(8.0)
    assert sum(reading.memory_limit_bytes for reading in readings) == pytest.approx(8 * GIB, abs=3)
    assert min(reading.cpus for reading in readings) >= 0.25 * 8.0 / 3 * (1 - 1e-9)


def test_memory_that_a_rank_holds_is_left_to_it():
    host = Host(2)
    for _ in range(3):
        host.clock.now += 0.5
        for rank, held in zip(host.ranks, (5 * GIB, GIB), strict=True):
            rank.read()
            rank.tell(Demand(cpus=1.0, memory_bytes=held))
    limits = [rank.read().memory_limit_bytes for rank in host.ranks]
    # 7.5 and 1.5 GiB wanted: the first gets what the second leaves.
    assert limits == [int(6.5 * GIB), int(1.5 * GIB)]


def test_a_rank_that_fell_silent_loses_its_share_and_gets_one_when_it_is_heard_again():
    host = Host(3, stale_s=10.0)
    for _ in range(3):
        host.turn([4.0, 4.0, 4.0])
    for _ in range(25):  # 12.5 s
        host.turn([9.0, 9.0, 9.0], only=[0, 1])
    assert [host.ranks[rank].read().cpus for rank in (0, 1)] == [4.0, 4.0]
    for _ in range(3):  # it is heard after the leader's turn, divided among at the next, and read by all at the third
        cpus = host.turn([4.0, 4.0, 4.0])
    assert cpus == pytest.approx([8 / 3] * 3)


def test_a_leader_that_fell_silent_is_followed_by_the_next_rank_and_leads_again_when_it_comes_back():
    host = Host(3, stale_s=10.0)
    for _ in range(3):
        host.turn([2.0, 2.0, 2.0])
    assert [rank.is_leader for rank in host.ranks] == [True, False, False]
    for _ in range(50):
        host.turn([0.0, 1.0, 20.0], only=[1, 2])
    assert [rank.is_leader for rank in host.ranks[1:]] == [True, False]
    assert [host.ranks[rank].read().cpus for rank in (1, 2)] == [1.0, 7.0]
    for _ in range(3):
        host.turn([2.0, 2.0, 2.0])
    assert [rank.is_leader for rank in host.ranks] == [True, False, False]


def test_a_minute_in_which_all_stood_still_makes_nobody_stale():
    host = Host(2, stale_s=10.0)
    for _ in range(3):
        host.turn([1.0, 20.0])
    host.clock.now += 60.0  # a validation
    assert host.turn([1.0, 20.0]) == [1.0, 7.0]
    assert host.turn([1.0, 20.0]) == [1.0, 7.0]


def test_cpus_taken_away_are_taken_from_all_at_once():
    host = Host(2)
    for _ in range(3):
        host.turn([2.0, 20.0])
    host.whole.reading = replace(host.whole.reading, cpus=4.0)
    assert [rank.read().cpus for rank in host.ranks] == [1.0, 3.0]


def test_ranks_pinned_to_other_cpus_share_memory_only():
    host = Host(3, pools=["left", "left", "right"])
    for _ in range(3):
        cpus = host.turn([1.0, 20.0, 5.0])
    assert cpus == [1.0, 7.0, 8.0]
    assert sum(rank.read().memory_limit_bytes for rank in host.ranks) == pytest.approx(8 * GIB, abs=3)


def test_hosts_do_not_meet():
    store = HashStore()
    alone = RankBudget(Whole(), store, Place(rank=0, host="one", cpu_pool="all"))
    RankBudget(Whole(), store, Place(rank=1, host="two", cpu_pool="all"))
    assert alone.read().cpus == 8.0


def test_a_rank_that_comes_later_gets_its_share():
    host = Host(1)
    assert host.turn([20.0]) == [8.0]
    host.ranks.append(RankBudget(host.whole, host.store, Place(rank=1, host="h", cpu_pool="all"), clock=host.clock))
    host.turn([20.0, 20.0])
    assert host.turn([20.0, 20.0]) == [4.0, 4.0]


class Torn(HashStore):
    """A store whose server is gone after so many calls."""

    def __init__(self, calls_left):
        super().__init__()
        self.calls_left = calls_left

    def set(self, key, value):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ConnectionError("the store's server has gone")
        super().set(key, value)


def test_a_store_that_fails_is_logged_once_and_the_share_stays(caplog):
    host = Host(2, store=Torn(calls_left=2 + 3 * 3))
    with caplog.at_level(logging.ERROR, "lightning_intune"):
        for _ in range(20):
            cpus = host.turn([1.0, 20.0])
    assert cpus == [1.0, 7.0]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2  # one for each rank
    assert "its share of CPUs and memory stays as it is" in caplog.text


def test_a_message_that_is_not_ours_is_as_good_as_a_failed_store(caplog):
    host = Host(2)
    host.turn([1.0, 20.0])
    host.store.set("lightning_intune/budget/h/shares", json.dumps(["not", "ours"]))
    with caplog.at_level(logging.ERROR, "lightning_intune"):
        assert host.ranks[1].read().cpus > 0
    assert len(caplog.records) == 1


def test_without_a_process_group_the_budget_is_the_whole():
    whole = Whole()
    assert among_ranks(whole) is whole


def test_a_place_tells_apart_what_does_not_share(tmp_path):
    def place(name, **texts):
        root = tmp_path / name
        for file, text in {"self/cgroup": "0::/job\n", "self/status": "Cpus_allowed_list:\t0-3\n", **texts}.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        return Place.here(0, proc_root=root)

    plain, same = place("a"), place("b")
    assert plain == same
    pinned = place("c", **{"self/status": "Cpus_allowed_list:\t4-7\n"})
    assert (pinned.host, pinned.cpu_pool != plain.cpu_pool) == (plain.host, True)
    assert place("d", **{"self/cgroup": "0::/other\n"}).host != plain.host
