"""What a stage does about items that fail: retries, skips, the quarantine file."""

from __future__ import annotations

import json
import os
import signal
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import (
    ElasticMapper,
    IterableSource,
    OnError,
    retry,
    skip,
)
from tests.flow.fragile import ALWAYS, SEEDS, BadItemError, FailsFirst, fragile, good, is_bad
from tests.flow.graphs import resize_storm

# ---- skipping ----


@given(num_items=st.integers(0, 80), width=st.integers(0, 5), in_order=st.booleans(), seed=SEEDS)
def test_skipped_items_are_left_out_and_counted_and_the_others_come_once_in_order(
    num_items: int, width: int, in_order: bool, seed: int
) -> None:
    node = ElasticMapper(IterableSource(range(num_items)), fragile, width, in_order=in_order, on_error=ALWAYS)
    with resize_storm(node, seed):
        out = list(node)
    assert (out if in_order else sorted(out)) == good(num_items)
    assert node.stats().num_skipped == num_items - len(good(num_items))


def test_the_limit_raises_at_the_item_that_is_one_too_many_at_any_width() -> None:
    # Of 40 items or more 10 % may go: 4 of the bad 3, 10, 17, 24; the fifth, 31, is one too many.
    for width in (0, 1, 4):
        policy = skip(max_share=0.1, min_items=40)
        node, out = ElasticMapper(IterableSource(range(100)), fragile, width, on_error=policy), list[int]()
        with pytest.raises(BadItemError, match=r"item 31 failed.*It would be the 5th of 32 items.*max_share=0\.1"):
            out.extend(node)
        assert out == good(31)
        assert node.stats().num_skipped == 4


def test_the_share_grows_with_the_items_seen() -> None:
    policy = skip(max_share=0.15, min_items=1)  # item 3 is 1 of 4: 25 %
    with pytest.raises(StageError, match="item 3 failed"):
        list(ElasticMapper(IterableSource(range(100)), fragile, 2, on_error=policy))
    late = [n for n in range(200) if n > 10 or not is_bad(n)]
    policy = skip(max_share=0.15, min_items=8)
    assert list(ElasticMapper(IterableSource(late), fragile, 2, on_error=policy)) == good(200)


def test_a_word_is_enough_and_other_words_are_refused() -> None:
    assert list(ElasticMapper(IterableSource(range(20)), fragile, 2, on_error="skip")) == good(20)
    with pytest.raises(ConfigError, match=r"on_error='ignore' is unknown\. Use 'raise', 'skip'"):
        ElasticMapper(IterableSource([]), fragile, 1, on_error="ignore")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, lambda: ConfigError("wrong. Why. Now what.")])
def test_interrupts_and_users_mistakes_are_never_skipped(error: Any) -> None:
    def fails(n: int) -> int:
        if n == 2:
            raise error()
        return n

    with pytest.raises((StageError, KeyboardInterrupt, SystemExit)):
        list(ElasticMapper(IterableSource(range(5)), fails, 1, on_error=retry(2, 0.0, then=ALWAYS)))


def test_only_the_errors_named_are_the_policys() -> None:
    node = ElasticMapper(IterableSource(range(9)), fragile, 1, on_error=skip(errors=(OSError,)))
    with pytest.raises(BadItemError, match="item 3 failed"):
        list(node)


def test_an_error_of_the_source_is_not_this_stages_to_skip() -> None:
    source = ElasticMapper(IterableSource(range(9)), fragile, 1, name="first")
    with pytest.raises(BadItemError, match="stage 'first': item 3 failed"):
        list(ElasticMapper(source, abs, 2, on_error=ALWAYS))


# ---- retrying ----


@pytest.mark.parametrize("width", [0, 3])
def test_an_item_that_fails_for_a_while_is_tried_again_and_costs_nothing(width: int) -> None:
    function = FailsFirst(2)
    node = ElasticMapper(IterableSource(range(50)), function, width, on_error=retry(2, 0.0))
    assert list(node) == list(range(50))
    assert function.calls == {n: 3 if is_bad(n) else 1 for n in range(50)}
    assert node.stats().num_retried == 2 * 7  # of 0..49 these are bad: 3, 10, 17, 24, 31, 38, 45
    assert node.stats().num_skipped == 0


def test_retries_that_do_not_help_raise_or_skip_as_asked() -> None:
    node = ElasticMapper(IterableSource(range(9)), FailsFirst(3), 1, on_error=retry(2, 0.0), name="read")
    with pytest.raises(BadItemError, match=r"stage 'read': item 3 failed.*call 3\. 2 retries did not help\."):
        list(node)
    both = retry(2, 0.0, then=skip())
    assert list(ElasticMapper(IterableSource(range(9)), FailsFirst(3), 1, on_error=both)) == good(9)


def test_the_wait_doubles_up_to_its_bound_less_up_to_half_by_chance() -> None:
    policy = OnError(retries=9, backoff_s=1.0, max_backoff_s=5.0)
    assert [policy.delay_s(number, chance=1.0) for number in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert [policy.delay_s(number, chance=0.0) for number in range(3)] == [0.5, 1.0, 2.0]
    assert policy.delay_s(10**6, chance=1.0) == 5.0


@pytest.mark.parametrize("width", [1, 3])
def test_a_stage_that_waits_to_try_again_is_shut_down_at_once(width: int) -> None:
    failed = threading.Event()

    def fails(_: int) -> None:
        failed.set()
        raise BadItemError

    node = ElasticMapper(IterableSource(range(9)), fails, width, on_error=retry(1, 3600.0))
    node.reset()
    ended = list[BaseException]()

    def take() -> None:
        try:
            next(node)
        except (RuntimeError, BadItemError) as error:
            ended.append(error)

    taker = threading.Thread(target=take)
    taker.start()
    assert failed.wait(60)
    node.shutdown()  # conftest sees that no worker is left
    taker.join()
    assert len(ended) == 1


def test_ctrl_c_ends_the_wait_of_a_stage_of_width_0() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def fails(_: int) -> None:
        signal.pthread_kill(main, signal.SIGINT)
        raise BadItemError

    with pytest.raises(KeyboardInterrupt):
        list(ElasticMapper(IterableSource(range(9)), fails, 0, on_error=retry(1, 3600.0)))


# ---- the quarantine file ----


def test_the_quarantine_file_lists_what_was_skipped_once_over_resumes(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    state = None
    for cut in (5, 9, None):
        policy = skip(max_share=1.0, quarantine=file)
        node = ElasticMapper(IterableSource(range(30)), fragile, 2, on_error=policy, name="read")
        node.reset(state)
        for _ in islice(node, cut):
            pass
        if cut != 9:  # the second run was killed before it could save
            state = node.state_dict()
        node.shutdown()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["item"] for line in lines] == [3, 10, 17, 24]
    assert lines[0] == {
        "stage": "read", "item": 3, "what": "3", "error": "BadItemError", "text": "item 3 is damaged",
    }  # fmt: skip


def test_a_quarantine_file_that_cannot_be_written_is_told_and_loses_nothing(tmp_path: Path) -> None:
    file = Path("/dev/full")
    if not file.exists():
        pytest.skip("no /dev/full here")
    node, out = ElasticMapper(IterableSource(range(30)), fragile, 2, on_error=skip(quarantine=file)), list[int]()
    with pytest.raises(OSError, match=r"item 3 failed.*No space left.*quarantine file '/dev/full'"):
        out.extend(node)
    assert out == [0, 1, 2]
    node = ElasticMapper(IterableSource(range(30)), fragile, 2, on_error=skip(quarantine=tmp_path / "bad"))
    assert list(node) == good(30)


def test_items_without_a_text_are_quarantined_all_the_same(tmp_path: Path) -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    def fails(item: Any) -> Any:
        if isinstance(item, Mute):
            raise BadItemError("x" * 5000)
        return item

    policy = skip(quarantine=tmp_path / "bad")
    assert list(ElasticMapper(IterableSource([1, Mute(), 2]), fails, 1, on_error=policy)) == [1, 2]
    (line,) = (tmp_path / "bad").read_text().splitlines()
    assert "Mute" in json.loads(line)["what"]
    assert len(json.loads(line)["text"]) < 1100


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"retries": -1}, "retries=-1"),
        ({"backoff_s": -1.0}, "backoff_s=-1.0 is outside"),
        ({"backoff_s": 50.0}, "max_backoff_s=30.0"),
        ({"max_share": 1.5}, "max_share=1.5 is no share"),
        ({"min_items": 0}, "min_items=0"),
        ({"errors": (KeyboardInterrupt,)}, "not all classes of exceptions"),
        ({"quarantine": "bad.jsonl"}, "skip is False"),
        ({"skip": True, "quarantine": "/no/such/folder/bad.jsonl"}, "cannot be written"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_construction(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnError(**settings_)


# ---- other lanes ----


def bad_in_many_ways(n: int) -> Any:
    match n % 10:
        case 3:
            raise BadItemError(n)
        case 5:
            return threading.Lock()  # cannot leave the process
        case 7:
            os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_in_processes_errors_deaths_and_what_cannot_cross_are_skipped_alike() -> None:
    node = ElasticMapper(IterableSource(range(40)), bad_in_many_ways, 2, method="process", on_error=ALWAYS)
    assert list(node) == [n for n in range(40) if n % 10 not in (3, 5, 7)]
    assert node.stats().num_skipped == 12


def hangs(n: int) -> int:
    if n == 4:
        threading.Event().wait()
    return n


@pytest.mark.parametrize("retries", [0, 1])
def test_an_item_that_hangs_in_a_process_is_killed_and_skipped(retries: int, tmp_path: Path) -> None:
    policy = retry(retries, 0.0, then=skip(max_share=1.0, quarantine=tmp_path / "bad"))
    node = ElasticMapper(IterableSource(range(9)), hangs, 2, method="process", timeout_s=1.0, on_error=policy)
    assert list(node) == [0, 1, 2, 3, 5, 6, 7, 8]
    (line,) = (tmp_path / "bad").read_text().splitlines()
    assert json.loads(line)["error"] == "TimeoutError"
    assert node.stats().num_retried == retries
