"""TorchRec's messages take as long as the shaped link would take, and no longer; it trains what we train."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("torchrec.distributed.embedding", exc_type=ImportError)
from benchmarks.overlap_parts.measured import HEADLINE, SAME_LOSS, UNSHAPED_BARE, measured
from benchmarks.overlap_parts.plot import draw, save_trace
from benchmarks.overlap_parts.shaped import Messages, shaped
from benchmarks.overlap_parts.waits import Waits, board_at
from benchmarks.overlap_parts.workload import CASES, NUM_ROWS, batches
from lightning_intune.overlap import Link


class Now:
    """A clock, and who sleeps by it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept.append(seconds)


class Arrived:
    """What gloo returns; the message is there already."""

    def wait(self, timeout: Any) -> bool:
        del timeout
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    monkeypatch.setattr(dist, "get_rank", lambda _: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda _: 4)
    for name in ("all_to_all_single", "reduce_scatter_tensor", "all_gather_into_tensor"):
        monkeypatch.setattr(dist, name, lambda *_, **__: Arrived())
    return Now()


def messages_of(now: Now) -> Messages:
    waits = Waits(rank=1, board=np.zeros((4, 3)), now=lambda: now.now_s)
    return Messages(link=Link(delay_s=0.5, bytes_per_s=8.0), waits=waits, sleep=now.sleep)


def seconds(messages: Messages, key: str) -> float:
    return messages.waits.split_s(0.0, float("inf"))[key]


def test_a_wait_ends_when_the_link_would_have_brought_the_message_counted_from_its_being_sent(now: Now) -> None:
    messages = messages_of(now)
    with shaped(messages):
        work: Any = dist.all_to_all_single(torch.zeros(9), torch.zeros(9), [1, 2, 3, 3], [4, 1, 0, 4], async_op=True)
    now.now_s += 1.5  # computes meanwhile
    assert work.wait()
    # 8 floats go to the other ranks, 7 come from them: 0.5 + 32 / 8 s, of which 1.5 had gone by.
    assert now.slept == [3.0]
    assert seconds(messages, "waited_s") == 3.0
    assert work.wait()
    assert now.slept == [3.0]  # TorchRec waits twice for some


def test_what_compute_has_covered_is_not_waited_for(now: Now) -> None:
    messages = messages_of(now)
    with shaped(messages):
        ids: Any = dist.all_to_all_single(torch.zeros(4).long(), torch.zeros(4).long(), async_op=True)
    now.now_s += 60
    ids.wait()
    assert now.slept == []
    assert seconds(messages, "ids_s") == seconds(messages, "waited_s") == 0.0
    [message] = messages.found
    assert message.num_bytes == 24  # three of four ids of 8 bytes
    assert message.ended_s == 100.0 + 0.5 + 24 / 8


def test_the_link_counts_from_the_last_ranks_coming_and_the_wait_until_then_is_for_that_rank(now: Now) -> None:
    messages = messages_of(now)
    with shaped(messages):
        first: Any = dist.all_to_all_single(torch.zeros(4), torch.zeros(4), async_op=True)
        second: Any = dist.all_to_all_single(torch.zeros(4), torch.zeros(4), async_op=True)
    messages.waits.board[3] = [102.5, 100.0, 0.0]
    now.now_s += 1.0  # computes meanwhile
    first.wait()
    # 12 bytes go: 0.5 + 12 / 8 s behind 102.5, of which 1.5 s went by before the last rank came.
    assert now.now_s == 104.5
    assert seconds(messages, "waited_s") == 3.5
    assert seconds(messages, "late_s") == 1.5
    second.wait()
    assert now.now_s == 104.5


def test_our_waits_are_split_where_the_last_trainer_hands_over(tmp_path: Path) -> None:
    ours, other = (
        Waits(rank=rank, board=board_at(tmp_path / "board", 2), now=partial(next, iter(times)))
        for rank, times in enumerate(([0.0, 0.5, 1.0, 2.0, 9.0, 11.0, 12.0, 14.0], [5.5, 10.0]))
    )
    for _ in range(2):  # before anybody came: the first step's rows
        ours.clock()
    assert [ours.came(), other.came(), other.came()] == [0, 0, 1]
    for _ in range(2):
        ours.clock()
    assert ours.came() == 1  # a second behind the other
    for _ in range(2):
        ours.clock()
    assert ours.split_s(0.0, 20.0) == {"waited_s": 0.5 + 7.0 + 2.0, "late_s": 3.5, "ids_s": 0.0}
    assert ours.split_s(0.0, 2.0) == {"waited_s": 0.5, "late_s": 0.0, "ids_s": 0.0}


@pytest.mark.parametrize(
    ("name", "num_out", "num_in"), [("reduce_scatter_tensor", 2, 8), ("all_gather_into_tensor", 8, 2)]
)
def test_a_reduction_and_a_gathering_send_what_is_not_this_ranks(
    now: Now, name: str, num_out: int, num_in: int
) -> None:
    messages = messages_of(now)
    with shaped(messages):
        getattr(dist, name)(torch.zeros(num_out), torch.zeros(num_in), group=None, async_op=True).wait()
    assert now.slept == [0.5 + 3 * 2 * 4 / 8]


def test_torch_is_as_it_was_behind_a_failure(now: Now) -> None:
    before = dist.all_to_all_single

    def fails() -> None:
        with shaped(messages_of(now)):
            dist.all_to_all_single(torch.zeros(4), torch.zeros(4))

    with pytest.raises(NotImplementedError, match="all_to_all_single that is waited for at once"):
        fails()
    assert dist.all_to_all_single is before


def test_a_batch_has_the_hot_rows_and_shares_no_other_with_ranks_or_the_batch_before() -> None:
    case = CASES[HEADLINE]
    ids = [[set(one.sparse.values().tolist()) for one in batches(case, rank, 2)] for rank in range(2)]
    assert all(len(one) == NUM_ROWS for by_rank in ids for one in by_rank)
    num_hot = round(0.1 * NUM_ROWS)
    assert len(ids[0][0] & ids[0][1]) == len(ids[0][1] & ids[1][1]) == len(ids[0][0] & ids[1][1]) == num_hot


def test_the_trace_can_be_read_by_chrome_and_drawn(tmp_path: Path) -> None:
    spans = [
        {"row": "trainer thread", "name": "forward", "begun_s": 0.0, "ended_s": 0.002, "num_bytes": 0},
        {"row": "exchange thread", "name": "late rows", "begun_s": 0.001, "ended_s": 0.0015, "num_bytes": 640},
    ]
    found = {way: {"spans": spans, "steps": [[0.0, 0.003]]} for way in ("waiting", "ours")}
    written = json.loads(Path(save_trace(found, tmp_path / "trace.json")).read_text())
    shown = [event for event in written["traceEvents"] if event["ph"] == "X"]
    assert [(event["pid"], event["tid"], event["ts"], event["dur"]) for event in shown] == [
        (pid, *times) for pid in range(2) for times in ((0, 0.0, 2000.0), (1, 1000.0, 500.0))
    ]
    assert shown[1]["args"] == {"bytes": 640}
    pytest.importorskip("matplotlib")
    assert Path(draw(found, tmp_path / "trace.png", "made up")).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_learn_the_same_by_torchrecs_pipeline_and_by_ours() -> None:
    found = measured(2, 3, 1, [HEADLINE, "one_hot-10", "bags-10", UNSHAPED_BARE])
    assert found["max_loss_difference"] <= SAME_LOSS
    for row in found["cases"].values():
        assert row["exposed_ms_sync"] > 0
        assert row["exposed_ms_ours"] > 0
