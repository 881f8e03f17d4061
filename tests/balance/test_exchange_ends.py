"""How an exchange ends a pass: ranks ahead of one another, lengths told beforehand, what is told at the end."""

from __future__ import annotations

import pickle
import threading
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.balance import BalancedExchange, CostModel, RankBatch
from lightning_intune.balance.shards import Shards
from lightning_intune.balance.watch import BubbleWatch
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticMapper, ElasticPrefetcher, IterableSource, Node
from lightning_intune.flow.node import StoppedError
from tests.balance.ranks import Line, on_all_ranks
from tests.balance.test_exchange import MODES, SIZES, Sample, everything, exchange, samples_of, shard


def same(item: Any) -> Any:
    return item


def ahead(node: BalancedExchange[Sample], rank: int) -> ElasticPrefetcher[RankBatch[Sample]]:
    """Stages behind the exchange, of another width on every rank: they take 2 to 30 batches ahead."""
    return ElasticPrefetcher(ElasticMapper(node, same, 1 + rank), 1 + 6 * rank)


@settings(max_examples=25)
@given(
    sizes=SIZES,
    mode=st.sampled_from(MODES),
    window=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_passes_cut_short_begin_anew_however_far_each_rank_is_ahead(
    sizes: list[int], mode: str, window: int, cuts: list[int]
) -> None:
    """As with `limit_train_batches`: after passes that all ranks leave behind the same step comes a whole one."""

    def work(line: Line) -> list[RankBatch[Sample]]:
        node = ahead(exchange(line, sizes, mode=mode, window=window), line.rank)
        for cut in cuts:
            node.reset()
            list(islice(node, cut))
        node.reset()
        out = list(node)
        node.shutdown()
        return out

    outs = on_all_ranks(len(sizes), work)
    assert not [out for out in outs if isinstance(out, Exception)], outs
    assert samples_of(outs) == everything(sizes)


@settings(max_examples=15)
@given(sizes=SIZES, mode=st.sampled_from(MODES), cut=st.integers(1, 7), others=st.integers(1, 4))
def test_a_state_from_behind_stages_that_are_ahead_resumes_exactly_and_on_other_ranks(
    sizes: list[int], mode: str, cut: int, others: int
) -> None:
    def work(line: Line, state: Any, cut: int | None) -> tuple[list[RankBatch[Sample]], Any]:
        node = ahead(exchange(line, sizes, mode=mode), line.rank)
        node.reset(None if state is None else pickle.loads(state))
        out = list(islice(node, cut))
        after = pickle.dumps(node.state_dict())
        node.shutdown()
        return out, after

    heads = on_all_ranks(len(sizes), lambda line: work(line, None, cut))
    taken = samples_of([out for out, _ in heads])
    for world_size in (len(sizes), others):
        tails = on_all_ranks(world_size, lambda line: work(line, heads[0][1], None))
        assert sorted(taken + samples_of([out for out, _ in tails])) == everything(sizes)
        assert {[batch.step for batch in out] == list(range(cut, cut + len(out))) for out, _ in tails} <= {True}


def test_a_rank_that_stops_alone_is_named_on_those_that_go_on() -> None:
    def work(line: Line) -> Any:
        node = exchange(line, [60, 60], mode="global", window=2)
        list(islice(node, 4))
        if line.rank == 1:
            node.shutdown()
            return None
        return list(node)

    first, _ = on_all_ranks(2, work)
    assert isinstance(first, StoppedError)
    assert "rank 1 was shut down, or began anew" in str(first)


@settings(max_examples=25)
@given(sizes=SIZES, mode=st.sampled_from(MODES), uneven=st.sampled_from(["pad", "drop"]), by_rank=st.booleans())
def test_len_is_the_number_of_steps_on_every_rank(sizes: list[int], mode: str, uneven: str, by_rank: bool) -> None:
    def work(line: Line) -> tuple[int, int]:
        said = sizes if by_rank else sizes[line.rank]
        node = exchange(line, sizes, mode=mode, uneven=uneven, num_samples=said)
        return len(node), len(list(node))

    expected = -(-max(sizes) // 3) if uneven == "pad" else min(sizes) // 3
    assert on_all_ranks(len(sizes), work) == [(expected, expected)] * len(sizes)


def test_a_source_that_does_not_keep_to_its_number_is_every_ranks_error() -> None:
    def work(line: Line) -> list[Any]:
        return list(exchange(line, [20, 9], num_samples=[12, 9]))

    for out in on_all_ranks(2, work):
        assert isinstance(out, RuntimeError)
        assert "the epoch had 7 steps, and its num_samples had promised 4" in str(out)


def test_len_holds_for_a_resumed_epoch_and_not_for_one_that_other_ranks_began() -> None:
    def head(line: Line) -> Any:
        node = exchange(line, [20, 20], num_samples=[20, 20])
        list(islice(node, 3))
        state = node.state_dict()
        node.shutdown()
        return state

    state = pickle.dumps(on_all_ranks(2, head)[0])

    def tail(line: Line, num_samples: list[int]) -> int:
        node = exchange(line, [20, 20], num_samples=num_samples)
        node.reset(pickle.loads(state))
        return len(list(node))

    assert on_all_ranks(2, lambda line: tail(line, [20, 20])) == [4, 4]
    assert on_all_ranks(3, lambda line: tail(line, [14, 13, 13])) == [4, 4, 4]


@pytest.mark.parametrize("bad", [-1, 2.5, "many", [], [3, -1]])
def test_numbers_of_samples_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match="is no number of samples"):
        BalancedExchange(IterableSource([1]), length=int, batch_size=1, num_samples=bad)


def test_without_a_number_there_is_no_len_and_with_another_of_ranks_an_error() -> None:
    with pytest.raises(TypeError, match="no num_samples"):
        len(BalancedExchange(IterableSource([1]), length=int, batch_size=1))
    with pytest.raises(ConfigError, match="num_samples has 2 numbers for 1 ranks"):
        len(BalancedExchange(IterableSource([1]), length=int, batch_size=1, num_samples=[1, 1]))


def test_steps_are_told_by_their_number_though_more_were_taken() -> None:
    """All 20 batches are taken ahead, then told: 2 s on rank 1, 1 s on rank 0, so 1 s of 4 is waiting."""

    def work(line: Line) -> Any:
        node = exchange(line, [60, 60], window=4)
        batches = list(node)
        for batch in batches:
            node.observe(1.0 + line.rank, step=batch.step)
            node.observe(9.0, step=batch.step)  # told already
        node.observe(9.0, step=99)  # never dealt
        return node.bubbles, node.settle()

    for before, after in on_all_ranks(2, work):
        assert before is None
        assert (after.num_steps, after.measured) == (20, pytest.approx(0.25))
        assert (after.waited, after.waited_for, after.wait_s) == (0, 1, (20.0, 0.0))


def test_what_was_told_in_one_epoch_is_heard_in_the_next() -> None:
    def work(line: Line) -> Any:
        node = exchange(line, [12, 12], window=4)
        for _ in node:
            node.observe(1.0 + line.rank)
        node.reset()
        next(node)
        found = node.bubbles
        node.observe(4.0)
        return found, node.settle()

    for found, last in on_all_ranks(2, work):
        assert (found.first_step, found.num_steps, found.measured) == (0, 4, pytest.approx(0.25))
        assert (last.first_step, last.num_steps, last.measured) == (4, 1, 0.0)  # numbered on


def test_training_that_ends_within_a_pass_is_settled_too() -> None:
    def work(line: Line) -> Any:
        node = ahead(exchange(line, [90, 90], window=2), line.rank)
        inner = next(source for source in node.sources[0].sources if isinstance(source, BalancedExchange))
        for batch in islice(node, 7):
            inner.observe(1.0 + line.rank, step=batch.step)
        found = inner.settle()
        node.shutdown()
        return found

    first, second = on_all_ranks(2, work)
    assert first == second
    assert first.first_step + first.num_steps == 7


def test_a_watch_tells_what_the_threads_clock_says_up_to_the_end_of_the_backward_pass() -> None:
    import torch

    def work(line: Line) -> Any:
        now_s = [0.0]
        node = exchange(line, [24, 24], window=4)
        watch = BubbleWatch(node, cpu_clock=lambda: now_s[0])
        found: list[Any] = []
        for batch in node:
            watch.begin(batch.step, torch.device("cpu"))
            watch.has_looked_forward()
            now_s[0] += 1.0 + line.rank
            watch.has_looked_back()
            now_s[0] += 5.0  # the optimizer, and whatever else
            found.append(watch.end())
        return [*filter(None, found), watch.settle()]

    first, second = on_all_ranks(2, work)
    assert first == second
    assert sum(stats.num_steps for stats in first) == 8
    assert all(stats.measured == pytest.approx(0.25) for stats in first)


class Counting(Node[Sample]):
    """Reads shard `rank` of `world_size` of the samples, when told so before a reset."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes, self.rank, self.world_size = sizes, 0, len(sizes)

    def reset(self, initial_state: Any = None) -> None:
        super().reset(initial_state)
        self.position = 0 if initial_state is None else initial_state["position"]

    def next(self) -> Sample:
        samples = shard(self.rank, self.sizes[self.rank]) if self.world_size == len(self.sizes) else []
        if self.position >= len(samples):
            raise StopIteration
        self.position += 1
        return samples[self.position - 1]

    def get_state(self) -> Any:
        return {"position": self.position}


@settings(max_examples=15)
@given(sizes=SIZES, mode=st.sampled_from(MODES), cut=st.integers(1, 6), others=st.integers(1, 4))
def test_one_graph_reads_all_the_shards_that_its_rank_takes_over(
    sizes: list[int], mode: str, cut: int, others: int
) -> None:
    def work(line: Line, state: Any, cut: int | None) -> tuple[list[RankBatch[Sample]], Any]:
        source = Counting(sizes)
        graph = Shards(ElasticMapper(source, same, 2), source)
        settings: dict[str, Any] = {"batch_size": 3, "window": 3, "mode": mode, "cost": CostModel(quadratic=0.1)}
        node = BalancedExchange(graph, length=lambda sample: sample[2], channel=line, **settings)
        node.reset(None if state is None else pickle.loads(state))
        out = list(islice(node, cut))
        after = pickle.dumps(node.state_dict())
        assert node.sources == (graph,)
        node.shutdown()
        return out, after

    heads = on_all_ranks(len(sizes), lambda line: work(line, None, cut))
    between = on_all_ranks(others, lambda line: work(line, heads[0][1], 1))
    tails = on_all_ranks(len(sizes), lambda line: work(line, between[0][1], None))
    outs = [out for part in (heads, between, tails) for out, _ in part]
    assert samples_of(outs) == everything(sizes)


def test_whoever_waits_for_a_batch_is_let_go_by_a_shutdown() -> None:
    """Rank 0 waits in `next` for rank 1, which never comes."""
    from tests.balance.ranks import Ranks

    ranks = Ranks(2)
    node = exchange(Line(ranks, 0), [60, 60], join_s=0.05)
    seen: list[Exception] = []

    def take() -> None:
        try:
            next(node)
        except StoppedError as error:
            seen.append(error)

    taker = threading.Thread(target=take)
    taker.start()
    while not ranks.barrier.n_waiting:
        pass
    with pytest.warns(ResourceWarning, match="the other ranks have not come to the window"):
        node.shutdown()
    taker.join()
    assert len(seen) == 1
    ranks.barrier.abort()
