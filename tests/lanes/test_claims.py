"""How many items go to a lane in one message when nobody has said so; nothing is lost or kept waiting by it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.nodes import IterableWrapper

from lightning_intune.errors import StageError
from lightning_intune.flow import ElasticMapper, IterableSource
from lightning_intune.flow.lanes import Failed, Lane, LaneDiedError, LanePool
from lightning_intune.flow.lanes.lane import LaneDiedIdleError
from lightning_intune.flow.lanes.reducers import UnpicklableError
from lightning_intune.flow.plan import Plan
from lightning_intune.flow.stage import ElasticStage
from lightning_intune.knobs import Bounds
from tests.flow.graphs import resize_storm, triple
from tests.lanes import functions
from tests.lanes.opened import one_lane


@final
class FakeLanes(LanePool):
    """Lanes that call `fn` in this process.

    `does` gets a message: how many of it are worked on? (0: the lane dies of it; -1: before it reads it)
    """

    kind = "fake"

    def __init__(
        self, does: Callable[[Sequence[Any]], int] = len, *, fn: Callable[[Any], Any] = triple, item_s: float = 1e-6
    ) -> None:
        self.does, self.fn, self.item_s = does, fn, item_s
        self.messages: list[list[Any]] = []

    def open(self) -> Lane:
        return FakeLane(self)

    def close(self) -> None:
        """Nothing is kept."""


@final
class FakeLane(Lane):
    def __init__(self, pool: FakeLanes) -> None:
        self._pool, self._fn_s = pool, 0.0

    def run(self, items: Sequence[Any], *, within_s: float = float("inf")) -> list[Any]:
        self._pool.messages.append(list(items))
        num_done = self._pool.does(items)
        if num_done <= 0:
            raise LaneDiedError("told to") if num_done == 0 else LaneDiedIdleError("told to")
        self._fn_s += self._pool.item_s * num_done
        return [self._pool.fn(item) for item in items[:num_done]]

    @property
    def cpu_s(self) -> float:
        return self._fn_s

    @property
    def run_delay_s(self) -> float:
        return 0.0

    @property
    def fn_s(self) -> float:
        return self._fn_s

    def close(self) -> None:
        """Nothing runs."""

    def kill(self) -> None:
        """Nothing runs."""


@final
class Stage(ElasticStage[Any]):
    def __init__(self, source: Any, lanes: FakeLanes, width: int, **others: Any) -> None:
        settings: dict[str, Any] = {
            "fn": triple, "in_order": True, "snapshot_every": 1, "prebatch": None, "max_bytes": None, "timeout_s": None,
            "tiny_s": 300e-6, "join_s": 5.0, "clock": lambda: 0.0,
        }  # fmt: skip
        plan = Plan(name="fake", lanes=lanes, **{**settings, **others})
        super().__init__(source, plan, width=width, bounds=Bounds(low=0, high=64))

    def _widths(self) -> tuple[int, int | None]:
        return self._target, None


@pytest.fixture(params=[IterableSource, IterableWrapper], ids=["IterableSource", "IterableWrapper"])
def source(request: pytest.FixtureRequest) -> Any:
    return request.param


def quickly(items: Any) -> Iterator[Any]:
    """A generator: nobody can know whether it waits before the next."""
    yield from items


# ---- how many ----


def test_tiny_items_of_any_source_go_together_once_it_is_known_to_be_quick(source: Any) -> None:
    lanes = FakeLanes()
    assert list(Stage(source(quickly(range(2000))), lanes, 1)) == [3 * n for n in range(2000)]
    sizes = [len(message) for message in lanes.messages]
    assert max(sizes) == 32
    assert sizes[:60] == [1] * 60 or source is IterableSource  # not before
    assert len(sizes) < 64 + 2000 / 16


@pytest.mark.parametrize(("item_us", "most"), [(5, 32), (100, 12), (250, 4), (400, 1)])
def test_a_message_is_worth_about_a_millisecond(item_us: int, most: int) -> None:
    lanes = FakeLanes(item_s=item_us * 1e-6)
    list(Stage(IterableSource(range(1000)), lanes, 2))
    assert max(len(message) for message in lanes.messages) == most


def test_a_source_that_is_waited_for_gives_one_item_to_a_message() -> None:
    now_s = [0.0]

    def slowly() -> Iterator[int]:
        for n in range(500):
            now_s[0] += 0.002
            yield n

    lanes = FakeLanes()
    assert len(list(Stage(IterableSource(slowly()), lanes, 2, clock=lambda: now_s[0]))) == 500
    assert {len(message) for message in lanes.messages} == {1}


def test_pulling_stops_before_it_takes_long() -> None:
    now_s = [0.0]

    def unhurried() -> Iterator[int]:
        for n in range(500):
            now_s[0] += 0.00012
            yield n

    lanes = FakeLanes()
    list(Stage(IterableSource(unhurried()), lanes, 1, clock=lambda: now_s[0]))
    assert max(len(message) for message in lanes.messages) == 3  # 0.36 ms of pulling


@pytest.mark.parametrize("options", [{"timeout_s": 60.0}, {"prebatch": 1}])
def test_a_timeout_or_a_chunk_size_of_one_means_one_by_one(options: dict[str, Any]) -> None:
    lanes = FakeLanes()
    list(Stage(IterableSource(range(500)), lanes, 2, **options))
    assert {len(message) for message in lanes.messages} == {1}


@pytest.mark.parametrize(
    ("num_bytes", "max_bytes", "most"),
    [
        pytest.param(1 << 10, None, 32, id="as many as a message holds"),
        pytest.param(1 << 17, None, 16, id="as many as 2 MiB hold"),
        pytest.param((1 << 20) + 1, None, 1, id="large"),
        pytest.param(1 << 17, 8 << 20, 8, id="an eighth of the bytes that the stage may hold"),
    ],
)
@pytest.mark.parametrize("is_input", [True, False])
def test_a_message_is_bounded_by_the_bytes_that_go_in_or_come_out(
    num_bytes: int, max_bytes: int | None, most: int, is_input: bool
) -> None:
    item = np.zeros(num_bytes, np.uint8)
    lanes = FakeLanes(fn=len if is_input else lambda _: item)
    source = (item if is_input else n for n in range(3000))  # many: two workers may halve a claim between them
    list(Stage(IterableSource(source), lanes, 2, max_bytes=max_bytes))
    assert max(len(message) for message in lanes.messages[70:]) == most  # 70: by then its items have been measured


# ---- nothing lost, nothing kept waiting ----


@given(
    num_items=st.integers(0, 700),
    width=st.integers(1, 4),
    in_order=st.booleans(),
    stops=st.sets(st.integers(0, 699), max_size=20),
    deaths=st.sets(st.integers(0, 699), max_size=5),
    idle_deaths=st.lists(st.integers(0, 699), max_size=19),
    seed=st.integers(0, 99),
)
def test_messages_that_come_back_half_done_or_not_at_all_cost_no_item(
    num_items: int, width: int, in_order: bool, stops: set[int], deaths: set[int], idle_deaths: list[int], seed: int
) -> None:
    deaths, idle_deaths = set(deaths), list(idle_deaths)  # the latter name an item up to nineteen times
    lock = threading.Lock()

    def does(items: Sequence[int]) -> int:
        with lock:
            for item in items:
                if item in idle_deaths:
                    idle_deaths.remove(item)
                    return -1
            for place, item in enumerate(items):
                if item in deaths:
                    deaths.discard(item)
                    return 0
                if item in stops:
                    return place + 1
        return len(items)

    stage = Stage(IterableSource(quickly(range(num_items))), FakeLanes(does), width, in_order=in_order)
    with resize_storm(stage, seed):
        out = list(stage)
    assert (out if in_order else sorted(out)) == [3 * n for n in range(num_items)]


@pytest.mark.parametrize(("does", "num_sent"), [(0, 3), (-1, 20)], ids=["at work", "idle"])
def test_an_item_is_given_up_after_a_bounded_number_of_deaths(does: int, num_sent: int) -> None:
    lanes = FakeLanes(lambda items: does if 4 in items else len(items))
    stage, out = Stage(IterableSource(range(9)), lanes, 1, prebatch=1), list[int]()
    with pytest.raises(StageError, match="item 4 failed with LaneDied"):
        out.extend(stage)
    assert out == [0, 3, 6, 9]
    assert lanes.messages.count([4]) == num_sent


def test_deaths_of_idle_lanes_cost_a_message_nothing_and_leave_it_whole() -> None:
    num_deaths = iter(range(19))
    lanes = FakeLanes(lambda items: -1 if 4 in items and next(num_deaths, None) is not None else len(items))
    assert list(Stage(IterableSource(range(9)), lanes, 1, prebatch=9)) == [3 * n for n in range(9)]
    assert lanes.messages == 20 * [list(range(9))]


@given(cut=st.integers(0, 500), width=st.integers(1, 3), in_order=st.booleans())
def test_state_between_the_items_of_a_message_is_exact(cut: int, width: int, in_order: bool) -> None:
    first = Stage(IterableSource(quickly(range(500))), FakeLanes(), width, in_order=in_order)
    out = list(islice(first, cut))
    state = first.state_dict()
    first.shutdown()
    second = ElasticMapper(IterableSource(range(500)), triple, 2)
    second.reset(state)
    assert sorted(out + list(second)) == [3 * n for n in range(500)]


@pytest.mark.parametrize("width", [1, 2])
def test_a_source_that_waits_until_its_items_are_delivered_is_not_waited_for(source: Any, width: int) -> None:
    """It gives 200 items at once, then none until the consumer has them all: those in hand go into work before."""
    delivered = threading.Semaphore(0)

    def rounds() -> Iterator[int]:
        for turn in range(6):
            yield from range(200 * turn, 200 * turn + 200)
            assert delivered.acquire(timeout=30), "an item was held back"

    stage, out = Stage(source(rounds()), FakeLanes(), width), list[int]()
    for item in stage:
        out.append(item)
        if len(out) % 200 == 0:
            delivered.release()
    assert out == [3 * n for n in range(1200)]
    assert max(map(len, stage._plan.lanes.messages)) > 1  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


def test_a_source_that_fails_in_the_middle_of_a_claim_fails_after_what_it_gave(source: Any) -> None:
    def broken() -> Iterator[int]:
        yield from range(333)
        raise OSError("gone")

    stage, out = Stage(source(broken()), FakeLanes(), 2), list[int]()
    with pytest.raises(OSError, match="item 333 failed with OSError: gone"):
        out.extend(stage)
    assert out == [3 * n for n in range(333)]


def test_what_comes_back_after_the_source_has_ended_and_all_have_left_is_worked_on_by_those_who_come() -> None:
    is_over, may_return = threading.Event(), threading.Event()

    def ends() -> Iterator[int]:
        yield from range(300)
        is_over.set()

    def does(items: Sequence[int]) -> int:
        if items[-1] < 299 or may_return.is_set():
            return len(items)
        may_return.wait(30)
        return 1

    lanes = FakeLanes(does)
    stage = Stage(IterableSource(ends()), lanes, 2)
    head = list(islice(stage, 268))  # the last message holds 32 at most
    assert is_over.wait(30)
    stage.resize(0)
    may_return.set()
    run = stage._run
    while run is not None and run.crew.counted:
        os.sched_yield()
    stage.resize(2)
    assert head + list(stage) == [3 * n for n in range(300)]
    assert len(lanes.messages[-2]) > 1


def taken(stage: Stage) -> tuple[list[int], BaseException | None]:
    """What comes out, and what ends it; a stage that hangs is shut down."""
    out, ended = list[int](), list[BaseException]()

    def take() -> None:
        try:
            out.extend(stage)
        except BaseException as error:  # noqa: BLE001 - looked at below
            ended.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(30)
    is_hanging = thread.is_alive()
    stage.shutdown()
    thread.join()
    assert not is_hanging, f"{len(out)} items came, then nothing"
    return out, ended[0] if ended else None


def test_a_failure_behind_what_comes_back_does_not_keep_it_from_being_worked_on() -> None:
    """One worker's message comes back half done, and in another's, behind it, an item has failed meanwhile."""
    held = list[int]()

    def does(items: Sequence[int]) -> int:
        if held or len(items) < 8:
            return len(items)
        held.extend(items)
        run = stage._run
        while run is not None and len(run.crew.counted) > 1:  # until the other has met the failure, and left
            os.sched_yield()
        return 3

    def fails_behind(item: int) -> Any:
        return Failed(ValueError("no")) if held and item > held[-1] else 3 * item

    stage = Stage(IterableSource(range(2000)), FakeLanes(does, fn=fails_behind), 2)
    out, error = taken(stage)
    assert out == [3 * n for n in range(held[-1] + 1)]
    assert isinstance(error, StageError)
    assert f"item {held[-1] + 1} failed" in str(error)


@given(
    width=st.integers(0, 4),
    in_order=st.booleans(),
    stops=st.sets(st.integers(0, 299), max_size=20),
    bad=st.sets(st.integers(0, 299), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_the_first_failure_comes_in_its_place_whatever_messages_come_back_half_done(
    width: int, in_order: bool, stops: set[int], bad: set[int], seed: int
) -> None:
    def does(items: Sequence[int]) -> int:
        return next((place + 1 for place, item in enumerate(items) if item in stops), len(items))

    def fn(item: int) -> int:  # by the consumer, at width 0
        if item in bad:
            raise ValueError("no")
        return 3 * item

    lanes = FakeLanes(does, fn=lambda item: Failed(ValueError("no")) if item in bad else 3 * item)
    stage = Stage(IterableSource(quickly(range(300))), lanes, width, in_order=in_order, fn=fn)
    with resize_storm(stage, seed):
        out, error = taken(stage)
    assert isinstance(error, StageError)
    assert len(set(out)) == len(out)
    assert set(out) <= {3 * n for n in set(range(300)) - bad}
    if in_order:
        assert out == [3 * n for n in range(min(bad))]
        assert f"item {min(bad)} failed" in str(error)


# ---- the lane's side ----


@given(bad=st.sets(st.integers(0, 9)), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_a_lane_hands_back_what_it_has_not_begun(bad: set[int], seed: int) -> None:
    """Items that cannot cross are `Failed` in their places, and those behind the last begun one are not told of."""
    items = [threading.Lock() if place in bad else place for place in range(10)]
    rng = random.Random(seed)
    with lane_of_same() as lane:
        rest, out, num_messages = items, list[Any](), 0
        while rest:
            done = lane.run(rest, within_s=rng.choice([0.0, 60.0]))
            assert 1 <= len(done) <= len(rest)
            out, rest, num_messages = out + done, rest[len(done) :], num_messages + 1
    assert [place if type(outcome) is Failed else outcome for place, outcome in enumerate(out)] == list(range(10))
    assert {place for place, outcome in enumerate(out) if type(outcome) is Failed} == bad
    assert all(isinstance(out[place].error, UnpicklableError) for place in bad)


@contextmanager
def lane_of_same() -> Iterator[Lane]:
    with one_lane(functions.same) as lane:
        yield lane


def test_without_a_limit_a_lane_works_off_all_it_is_given_and_tells_the_time_it_took() -> None:
    with one_lane(functions.burns) as lane:
        assert lane.run([0.01] * 3) == [None] * 3
        assert lane.fn_s >= 0.03
        assert lane.run([0.01] * 3, within_s=0.0) == [None]
        assert 0.04 <= lane.fn_s < 0.4
