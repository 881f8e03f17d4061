"""Equal steps when a rank fails, stops, has nothing, or was asked for what cannot be."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import pytest

from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticMapper, EqualSteps, Node
from lightning_intune.flow.node import StoppedError
from lightning_intune.flow.rank_share import Report
from tests.flow.ranks import Flaky, Line, Ranks, at, equal_steps, item, on_all_ranks, source


@pytest.mark.parametrize("mode", ["drop", "pad"])
def test_a_rank_whose_source_fails_ends_all_after_the_last_step_that_all_have(mode: Any) -> None:
    def work(line: Line) -> Any:
        def fragile(text: str) -> str:
            if text == item(1, 10):
                raise OSError("disk gone")
            return text

        node = EqualSteps(
            ElasticMapper(source(line.rank, 20), fragile, 2), mode=mode, pad=str, window=4, communicator=line
        )
        out: list[str] = []
        try:
            out.extend(node)
        except Exception as error:  # noqa: BLE001 - compared below
            node.shutdown()
            return out, error, node.state_dict()
        return out, None, None

    (out0, error0, state0), (out1, error1, _) = on_all_ranks(2, work)
    assert out0 == [item(0, n) for n in range(10)]
    assert out1 == [item(1, n) for n in range(10)]
    assert isinstance(error1, OSError)
    assert isinstance(error0, RuntimeError)
    assert "rank 1 failed with StageError" in str(error0)
    assert "disk gone" in str(error0)

    def resume(line: Line) -> Any:
        node = EqualSteps(ElasticMapper(source(line.rank, 20), str, 2, name="fragile"), window=4, communicator=line)
        node.reset(state0)
        return list(node)

    assert on_all_ranks(2, resume) == [[item(rank, n) for n in range(10, 20)] for rank in range(2)]


def test_a_run_that_fails_while_it_is_being_resumed_leaves_the_state_it_was_given() -> None:
    state = on_all_ranks(2, lambda line: at(equal_steps(line, [30, 30], "drop", 8), 14))[0]
    assert state["skip"] == 7  # of the window of 8 that began behind 7 items

    def resume(line: Line, bad: str | None) -> Any:
        def fragile(text: str) -> bool:
            if text == bad:
                raise OSError("disk gone")
            return True

        node = EqualSteps(Flaky(source(line.rank, 30), fragile), window=8, communicator=line)
        node.reset(state)
        try:
            return list(node)
        except Exception:  # noqa: BLE001 - whichever it is
            return node.state_dict()

    assert on_all_ranks(2, lambda line: resume(line, item(1, 11))) == [state, state]
    assert on_all_ranks(2, lambda line: resume(line, None)) == [[item(r, n) for n in range(14, 30)] for r in range(2)]


def test_a_rank_without_any_item_fails_all_ranks_alike_when_there_is_nothing_to_copy() -> None:
    errors = on_all_ranks(2, lambda line: list(equal_steps(line, [3, 0], "pad", 4)))
    assert [type(error) for error in errors] == [RuntimeError, RuntimeError]
    assert all("rank 1 has no item at all" in str(error) for error in errors)
    assert on_all_ranks(2, lambda line: list(equal_steps(line, [0, 0], "pad", 4))) == [[], []]


def test_a_padding_that_is_not_known_fails_at_the_first_step_and_not_at_the_last() -> None:
    def work(line: Line) -> Any:
        node = EqualSteps(source(line.rank, 5 + line.rank), mode="pad", communicator=line)
        return next(node)

    errors = on_all_ranks(2, work)
    assert all("a str that weighs nothing is not known" in str(error) for error in errors)


def test_after_shutdown_no_item_is_skipped_in_silence() -> None:
    def work(line: Line) -> Any:
        node = EqualSteps(source(line.rank, 50), window=4, communicator=line)
        list(islice(node, 5))
        node.shutdown()
        node.shutdown()
        return list(node)

    assert [type(error) for error in on_all_ranks(2, work)] == [StoppedError, StoppedError]


class Waiting(Node[int]):
    """Numbers; from `last` on it waits for its shutdown, and only then gives more."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.position, self.asked, self.may_go_on = last, 0, threading.Event(), threading.Event()

    def next(self) -> int:
        if self.position == self.last:
            self.asked.set()
            assert self.may_go_on.wait(30)
        self.position += 1
        return self.position - 1

    def get_state(self) -> Any:
        return {}

    def shutdown(self) -> None:
        self.may_go_on.set()


def test_shutdown_releases_a_window_that_waits_for_its_source_and_pulls_no_more() -> None:
    def work(line: Line) -> Any:
        numbers = Waiting(5)
        node = EqualSteps(numbers, window=64, communicator=line, join_s=0.5)
        out = list(islice(node, 2))  # windows of 1, 2 and then 4, the third of which waits for number 5
        numbers.asked.wait(30)
        node.shutdown()
        return out, numbers.position

    assert on_all_ranks(2, work) == [([0, 1], 6)] * 2


def test_ranks_that_stop_apart_are_warned_of_and_not_waited_for() -> None:
    ranks = Ranks(2)
    other = threading.Thread(target=ranks.gather, args=(1, _report()))
    other.start()
    node = EqualSteps(source(0, 50), window=1, communicator=Line(ranks, 0), join_s=0.05)
    assert next(node) == "0.0"
    other.join()
    with pytest.warns(ResourceWarning, match="the other ranks have not come to the window"):
        node.shutdown()
    ranks.leave()


def _report() -> Any:
    """What a rank with one item tells in its first window."""
    return Report(num_items=1, can_pad=True, error=None, restart={"source": None, "drop": 0})


def test_state_of_another_number_of_ranks_is_refused() -> None:
    state = on_all_ranks(2, lambda line: at(equal_steps(line, [9, 9], "drop", 4), 5))[0]
    with pytest.raises(ConfigError, match="saved on 2 ranks, and there are 1"):
        EqualSteps(source(0, 9)).reset(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "join"}, "mode='join' is unknown"),
        ({"window": 0}, "window=0 agrees on nothing"),
        ({"pad": 3}, "pad=3 cannot be called"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EqualSteps(source(0, 1), **arguments)
