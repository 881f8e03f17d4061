"""`method="auto"`: workers move between threads and processes while items flow, and no item notices."""

import os
import pickle
import threading
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticMapper, IterableSource


def where(x):
    sum(range(20_000))  # not so tiny that one worker takes dozens in one go
    return x, os.getpid()


class Rooted:
    """A function that holds a lock, which no process can be sent."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, x):
        return x


def refuses_five(x):
    if x == 5:
        raise ValueError("five")
    return x


def auto(fn, num, **kwargs):
    return ElasticMapper(IterableSource(range(num)), fn, num_workers=2, method="auto", name="work", **kwargs)


def test_it_starts_in_threads_and_goes_to_processes_and_back():
    stage = auto(where, 300)
    here = os.getpid()
    try:
        first = list(islice(stage, 50))
        assert stage.stats().lane == "thread"
        stage.knob.move("process")
        second = list(islice(stage, 150))
        assert stage.stats().lane == "process"
        stage.knob.move("thread")
        third = list(stage)
    finally:
        stage.shutdown()
    assert [x for x, _ in first + second + third] == list(range(300))
    assert {pid for _, pid in first} == {here}
    assert here not in {pid for _, pid in second[-30:]}
    assert {pid for _, pid in third[-30:]} == {here}


@given(moves=st.lists(st.tuples(st.integers(1, 15), st.sampled_from(["thread", "process"])), max_size=4))
@settings(max_examples=6)
def test_any_moves_at_any_time_keep_every_item_in_order(moves):
    stage = auto(abs, 60)
    try:
        got = []
        for count, place in moves:
            got += islice(stage, count)
            stage.knob.move(place)
        assert got + list(stage) == list(range(60))
    finally:
        stage.shutdown()


def test_a_state_taken_in_processes_goes_on_in_threads():
    first = auto(abs, 40)
    try:
        first.knob.move("process")
        head = list(islice(first, 15))
        state = first.get_state()
    finally:
        first.shutdown()
    second = auto(abs, 40)
    second.reset(state)
    assert head + list(second) == list(range(40))
    second.shutdown()


@pytest.mark.parametrize("place", ["thread", "process"])
def test_an_error_is_the_stages_and_the_originals_in_either_place(place):
    stage = auto(refuses_five, 10)
    stage.knob.move(place)
    with pytest.raises(StageError, match="five") as caught:
        list(stage)
    assert isinstance(caught.value, ValueError)


def test_a_function_that_cannot_cross_stays_in_threads():
    stage = auto(Rooted(), 20)
    with pytest.raises(ConfigError):
        stage.knob.move("process")
    assert stage.stats().lane == "thread"
    assert list(stage) == list(range(20))


def test_there_is_no_third_place():
    with pytest.raises(ConfigError, match="'thread' or 'process'"):
        auto(abs, 1).knob.move("ray")


def test_stages_of_one_kind_cannot_be_moved():
    assert ElasticMapper(IterableSource(range(3)), abs, num_workers=1).knob.move is None


def test_it_can_be_pickled():
    stage = pickle.loads(pickle.dumps(auto(abs, 5)))
    assert list(stage) == list(range(5))
