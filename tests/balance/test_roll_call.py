"""Who is named when a collective breaks: by marks in a store alone, with times handed in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch.distributed as dist

from lightning_intune.balance.roll_call import RollCall, process_has_ended, process_place

TIMEOUT_S = 30.0


class Job:
    """Three ranks that share a store, and what happens at which second of one's waiting."""

    def __init__(self, *, knows_fates: bool = True) -> None:
        self.now_s, self.knows_fates = 0.0, knows_fates
        self.ended: set[int] = set()
        self.later: dict[float, list[object]] = {}
        store = dist.HashStore()
        self.ranks = [
            RollCall(
                store,
                rank=rank,
                world_size=3,
                timeout_s=TIMEOUT_S,
                place=str(rank),
                has_ended=self._has_ended,
                clock=lambda: self.now_s,
                sleep=self._sleep,
            )
            for rank in range(3)
        ]

    def come(self, *ranks: int) -> None:
        for rank in ranks:
            self.ranks[rank].come()

    def told(self, rank: int, since_s: float = 0.0) -> str:
        return self.ranks[rank].at_fault(since_s)

    def _has_ended(self, place: str) -> bool | None:
        return place and int(place) in self.ended if self.knows_fates else None

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for due_s in [due_s for due_s in self.later if due_s <= self.now_s]:
            for happen in self.later.pop(due_s):
                happen()  # type: ignore[operator]


def test_the_rank_whose_process_ended_is_named_at_once_though_another_is_on_its_way() -> None:
    job = Job()
    job.come(0)
    job.ended.add(1)
    assert (job.told(0), job.now_s) == ("rank 1 has ended", 0.0)


def test_the_rank_that_ended_after_it_had_come_is_named_and_not_the_one_that_is_late() -> None:
    job = Job()
    job.come(0, 1)
    job.later = {0.3: [lambda: job.ended.add(1)]}  # its connections close a moment before it is gone
    assert job.told(0) == "rank 1 has ended"
    assert job.now_s == pytest.approx(0.3, abs=0.06)


def test_all_follow_the_first_verdict_though_others_have_ended_since() -> None:
    job = Job()
    job.come(0, 2)
    job.ended.add(1)
    assert job.told(2) == "rank 1 has ended"
    job.ended.add(2)
    assert job.told(0) == "rank 1 has ended"


def test_a_rank_that_blames_and_ends_between_two_looks_is_not_named_beside_the_one_it_blames() -> None:
    job = Job()
    job.come(0, 2)
    job.ended.add(1)
    fates = job._has_ended

    def look(place: str) -> bool | None:
        if place == "2" and 2 not in job.ended:
            job.told(2)
            job.ended.add(2)
        return fates(place)

    job.ranks[0]._has_ended = look
    assert job.told(0) == "rank 1 has ended"


def test_of_ranks_on_their_way_only_the_one_is_named_that_still_has_not_come_after_two_seconds() -> None:
    job = Job()
    job.come(0)
    job.later = {1.5: [lambda: job.come(2)]}
    assert job.told(0) == "rank 1 had not come when the connection broke"
    assert job.now_s == pytest.approx(2.0, abs=0.06)


def test_after_the_timeout_the_late_one_is_named_at_once() -> None:
    job = Job()
    job.come(0, 2)
    assert (job.told(0, since_s=30.0), job.now_s) == ("rank 1 did not come within 30 s, or had ended", 0.0)


@pytest.mark.parametrize("late", [[1], [1, 2]])
def test_where_no_process_can_be_seen_those_are_named_that_have_not_come_after_two_seconds(late: list[int]) -> None:
    job = Job(knows_fates=False)
    job.come(*{0, 1, 2} - set(late))
    assert job.told(0) == f"rank {', '.join(map(str, late))} had not come when the connection broke"
    assert job.now_s == pytest.approx(2.0, abs=0.06)


def test_where_no_process_can_be_seen_the_one_is_named_that_had_come_and_does_not_notice() -> None:
    job = Job(knows_fates=False)
    job.come(0, 1, 2)
    job.later = {1.0: [lambda: job.ranks[2]._store.set("broke/2", "yes")]}
    assert job.told(0) == "rank 1 had come, and has ended since"


def test_where_all_had_come_and_live_the_connection_broke() -> None:
    job = Job()
    job.come(0, 1, 2)
    for rank in (1, 2):
        job.ranks[rank]._store.set(f"broke/{rank}", "yes")
    assert job.told(0) == "every rank had come, so the connection between them broke"


@pytest.mark.skipif(sys.platform != "linux", reason="only there can it be told")
def test_a_process_has_ended_when_killed_reaped_or_not_and_one_elsewhere_is_unknown() -> None:
    assert process_has_ended(process_place()) is False
    machine = process_place().rpartition("/")[0]
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_has_ended(f"{machine}/{child.pid}") is False
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert process_has_ended(f"{machine}/{child.pid}") is True
    child.communicate()
    assert process_has_ended(f"{machine}/{child.pid}") is True
    assert process_has_ended(f"another/{machine}/{child.pid}") is None
    assert process_has_ended("") is None
