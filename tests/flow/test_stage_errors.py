"""What a stage says of failures: its function's, its source's, its user's, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from itertools import islice
from typing import Any

import pytest
from torchdata.nodes import IterableWrapper

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, Node
from lightning_intune.flow.node import StoppedError


def same(item: Any) -> Any:
    return item


def test_a_function_that_raises_stop_iteration_fails_and_does_not_end_the_epoch() -> None:
    def stop(n: int) -> int:
        if n == 2:
            raise StopIteration
        return n

    node = ElasticMapper(IterableSource(range(5)), stop, 2, name="stop")
    out: list[int] = []
    with pytest.raises(StageError, match="stage 'stop': item 2 failed with StopIteration") as caught:
        out.extend(node)
    assert out == [0, 1]
    assert not isinstance(caught.value, StopIteration)


def test_a_stage_error_keeps_the_original_traceback_and_class() -> None:
    def parse(text: str) -> int:
        return int(text)

    node = ElasticMapper(IterableSource(["1", "x"]), parse, 1)
    assert next(node) == 1
    with pytest.raises(ValueError, match="stage 'parse': item 1 failed with ValueError: invalid literal") as caught:
        next(node)
    assert caught.value.__cause__ is not None
    names = [entry.name for entry in caught.traceback]
    assert "test_a_stage_error_keeps_the_original_traceback_and_class" in names
    cause_frames = []
    at = caught.value.__cause__.__traceback__
    while at is not None:
        cause_frames.append(at.tb_frame.f_code.co_name)
        at = at.tb_next
    assert cause_frames[-1] == "parse"


def test_a_source_that_raises_midway_delivers_what_came_before() -> None:
    def broken() -> Any:
        yield from range(3)
        raise OSError("disk gone")

    class Source(Node[int]):
        def reset(self, initial_state: Any = None) -> None:
            super().reset(initial_state)
            self._it = broken()

        def next(self) -> int:
            return next(self._it)

        def get_state(self) -> Any:
            return {}

    node, out = ElasticMapper(Source(), same, 3), []
    with pytest.raises(OSError, match=r"item 3 failed with OSError: disk gone. The error came from the stage's source"):
        out.extend(node)
    assert out == [0, 1, 2]


def test_a_failed_stage_starts_anew_after_reset_and_resumes_before_the_failed_item() -> None:
    bad = {3}

    def fragile(n: int) -> int:
        if n in bad:
            raise RuntimeError("not yet")
        return n

    node = ElasticMapper(IterableSource(range(6)), fragile, 2)
    assert list(islice(node, 3)) == [0, 1, 2]
    with pytest.raises(StageError):
        next(node)
    state = node.state_dict()
    bad.clear()
    node.reset(state)
    assert list(node) == [3, 4, 5]


def test_a_worker_that_hangs_is_reported_with_its_item_and_not_waited_for() -> None:
    release = threading.Event()

    def hang(n: int) -> int:
        if n == 2:
            release.wait(60)
        return n

    node, out = ElasticMapper(IterableSource(range(5)), hang, 2, name="hang", timeout_s=0.5), []
    object.__setattr__(node._plan, "join_s", 0.05)
    with (
        pytest.warns(ResourceWarning, match="left behind as a daemon thread"),
        pytest.raises(TimeoutError, match=r"stage 'hang': item 2 failed.*Raise timeout_s=0.5") as caught,
    ):
        out.extend(node)
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("hang"):
            thread.join()
    assert isinstance(caught.value, StageError)
    assert out == [0, 1]


def test_a_stage_that_was_shut_down_never_ends_the_epoch_in_silence() -> None:
    node = ElasticMapper(IterableSource(range(100)), same, 2)
    next(node)
    node.shutdown()
    node.shutdown()
    with pytest.raises(StoppedError, match="was shut down"):
        list(node)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": -1}, r"a width of -1 is outside its bounds \[0, 64\]"),
        ({"num_workers": 1, "max_concurrent": 0}, "max_concurrent=0 lets nothing through"),
        ({"num_workers": 1, "snapshot_frequency": -1}, "snapshot_frequency=-1 is no number of items"),
        ({"num_workers": 1, "timeout_s": 0}, "timeout_s=0 is no time at all"),
        ({"num_workers": 1, "method": "fiber"}, "method='fiber' is unknown"),
        ({"num_workers": 1, "min_workers": 9, "max_workers": 3}, "hold no width"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElasticMapper(IterableSource([]), same, **arguments)


def test_a_width_outside_the_bounds_is_refused_while_running_and_changes_nothing() -> None:
    node = ElasticMapper(IterableSource(range(5)), same, 2, max_workers=4)
    with pytest.raises(ConfigError, match="width of 5 is outside"):
        node.resize(5)
    assert node.num_workers == 2


def test_what_is_no_node_is_refused_with_the_way_to_wrap_it() -> None:
    with pytest.raises(ConfigError, match=r"source=list is not a node\. Wrap an iterable in"):
        ElasticMapper([1, 2], same, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="root=list is not a node"):
        ElasticLoader([1, 2])  # pyright: ignore[reportArgumentType]


def test_items_claimed_before_a_source_failed_are_all_delivered() -> None:
    class Bursts(Node[int]):
        """Hands over 40 items at once, then fails."""

        def reset(self, initial_state: Any = None) -> None:
            super().reset(initial_state)
            self._position = 0

        def next(self) -> int:
            return self.next_burst(1)[0]

        def next_burst(self, limit: int) -> list[int]:
            if self._position >= 400:
                raise OSError("gone")
            first, self._position = self._position, min(400, self._position + limit)
            return list(range(first, self._position))

        def get_state(self) -> Any:
            return {}

    node, out = ElasticMapper(Bursts(), same, 3), []
    with pytest.raises(OSError, match="item 400 failed with OSError: gone"):
        out.extend(node)
    assert out == list(range(400))


@pytest.mark.parametrize("width", [0, 2])
def test_ctrl_c_is_ctrl_c_and_leaves_nothing_running(width: int) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def press(n: int) -> int:
        if n == 20:
            signal.pthread_kill(main, signal.SIGINT)
        return n

    with (
        pytest.raises(KeyboardInterrupt),
        ElasticLoader(ElasticMapper(IterableSource(range(10**6)), press, width)) as it,
    ):
        list(it)


def test_an_interrupted_stage_says_so_when_asked_again() -> None:
    def interrupt(n: int) -> int:
        if n == 2:
            raise KeyboardInterrupt
        return n

    node = ElasticMapper(IterableSource(range(5)), interrupt, 0)
    with pytest.raises(KeyboardInterrupt):
        list(node)
    with pytest.raises(StoppedError):
        next(node)


def test_a_source_failing_inside_a_prebatch_fails_after_what_it_gave() -> None:
    def broken() -> Any:
        yield from range(7)
        raise OSError("gone")

    node, out = ElasticMapper(IterableWrapper(broken()), same, 2, prebatch=4), []
    with pytest.raises(OSError, match="item 7 failed with OSError: gone"):
        out.extend(node)
    assert out == list(range(7))


def test_a_stage_error_carries_the_fields_of_the_original() -> None:
    class BadRowError(ValueError):
        def __init__(self, row: int) -> None:
            super().__init__(f"row {row}")
            self.row = row

    def read(n: int) -> int:
        if n == 1:
            raise FileNotFoundError(2, "no such file", "part-7.parquet")
        raise BadRowError(n)

    with pytest.raises(FileNotFoundError) as missing:
        list(ElasticMapper(IterableSource([1]), read, 1))
    assert (missing.value.errno, missing.value.filename) == (2, "part-7.parquet")
    with pytest.raises(BadRowError, match="item 0 failed with BadRowError: row 5") as bad:
        list(ElasticMapper(IterableSource([5]), read, 1))
    assert bad.value.row == 5
