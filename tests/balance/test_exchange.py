"""The exchange over ranks that are threads: laws over modes, uneven shards, cuts and other numbers of ranks."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.balance import BalancedExchange, CostModel, RankBatch
from lightning_intune.balance.division import bubble
from lightning_intune.errors import ConfigError
from lightning_intune.flow import ElasticMapper, Filter, IterableSource
from tests.balance.ranks import Line, on_all_ranks

Sample = tuple[int, int, int]
"""Shard, place in it, length."""

MODES = ["off", "local", "reservoir", "global"]
SIZES = st.lists(st.integers(0, 25), min_size=2, max_size=4).filter(any)


def shard(number: int, size: int) -> list[Sample]:
    rng = np.random.default_rng(number)
    return [(number, place, int(length)) for place, length in enumerate(rng.lognormal(3, 1.2, size).astype(int))]


def exchange(line: Line, sizes: list[int], **settings: Any) -> BalancedExchange[Sample]:
    def make(number: int, num_shards: int) -> IterableSource[Sample]:
        # the shards are those of the ranks that began; another number of ranks makes some that it does not read
        return IterableSource(shard(number, sizes[number] if num_shards == len(sizes) else 0))

    settings = {"batch_size": 3, "window": 3, "cost": CostModel(linear=1.0, quadratic=0.1), **settings}
    return BalancedExchange(make, length=lambda sample: sample[2], channel=line, **settings)


def samples_of(outs: list[list[RankBatch[Sample]]]) -> list[Sample]:
    return sorted(sample for batches in outs for batch in batches if not batch.is_padding for sample in batch.samples)


def shown(batch: RankBatch[Sample]) -> Any:
    """All that is promised of a batch: of which sample padding is a copy is not."""
    return batch.is_padding or batch.samples, batch.count, batch.global_count, batch.planned_costs


def everything(sizes: list[int]) -> list[Sample]:
    return sorted(sample for number, size in enumerate(sizes) for sample in shard(number, size))


@settings(max_examples=40)
@given(sizes=SIZES, mode=st.sampled_from(MODES), window=st.integers(1, 5))
def test_every_sample_comes_once_and_every_rank_takes_as_many_steps(sizes: list[int], mode: str, window: int) -> None:
    outs = on_all_ranks(len(sizes), lambda line: list(exchange(line, sizes, mode=mode, window=window)))
    assert samples_of(outs) == everything(sizes)
    assert {len(out) for out in outs} == {-(-max(sizes) // 3)}
    assert all(len(batch) > 0 for out in outs for batch in out)


@settings(max_examples=40)
@given(sizes=SIZES, window=st.integers(1, 5), uneven=st.sampled_from(["pad", "drop"]))
def test_a_global_step_has_the_samples_of_the_unbalanced_run(sizes: list[int], window: int, uneven: str) -> None:
    outs = on_all_ranks(
        len(sizes), lambda line: list(exchange(line, sizes, mode="global", window=window, uneven=uneven))
    )
    num_steps = -(-max(sizes) // 3) if uneven == "pad" else min(sizes) // 3
    assert {len(out) for out in outs} == {num_steps}
    for step in range(num_steps):
        unbalanced = [s for number, size in enumerate(sizes) for s in shard(number, size)[3 * step : 3 * step + 3]]
        assert samples_of([[out[step]] for out in outs]) == sorted(unbalanced)
        counts = [out[step].count for out in outs]
        assert max(counts) - min(counts) <= 1
        assert {out[step].global_count for out in outs} == {len(unbalanced)}


@settings(max_examples=40)
@given(sizes=SIZES, mode=st.sampled_from(MODES), window=st.integers(1, 5), cut=st.integers(0, 9))
def test_a_resumed_run_continues_as_if_never_stopped(sizes: list[int], mode: str, window: int, cut: int) -> None:
    whole = on_all_ranks(len(sizes), lambda line: list(exchange(line, sizes, mode=mode, window=window)))

    def head(line: Line) -> tuple[list[RankBatch[Sample]], Any]:
        node = exchange(line, sizes, mode=mode, window=window)
        taken = list(islice(node, cut))
        state = node.state_dict()
        node.shutdown()
        return taken, state

    heads = on_all_ranks(len(sizes), head)
    state = pickle.dumps(heads[0][1])  # rank 0's, loaded by all

    def tail(line: Line) -> list[RankBatch[Sample]]:
        node = exchange(line, sizes, mode=mode, window=window)
        node.reset(pickle.loads(state))
        return list(node)

    tails = on_all_ranks(len(sizes), tail)
    joined = [before + after for (before, _), after in zip(heads, tails, strict=True)]
    assert [list(map(shown, out)) for out in joined] == [list(map(shown, out)) for out in whole]


@settings(max_examples=40)
@given(
    sizes=SIZES,
    mode=st.sampled_from(MODES),
    window=st.integers(1, 5),
    cuts=st.tuples(st.integers(1, 9), st.integers(0, 4)),
    others=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_on_other_numbers_of_ranks_nothing_is_lost_or_repeated(
    sizes: list[int], mode: str, window: int, cuts: tuple[int, int], others: list[int]
) -> None:
    state: Any = None
    taken: list[Sample] = []
    for number, world_size in enumerate([len(sizes), *others]):
        cut = None if number == len(others) else cuts[number]

        def run(line: Line, cut: int | None = cut, state: Any = state) -> tuple[list[RankBatch[Sample]], Any]:
            node = exchange(line, sizes, mode=mode, window=window)
            node.reset(pickle.loads(state) if state is not None else None)
            batches = list(islice(node, cut))
            after = node.state_dict()
            node.shutdown()
            return batches, after

        outs = on_all_ranks(world_size, run)
        assert not [out for out in outs if isinstance(out, Exception)], outs
        taken += samples_of([batches for batches, _ in outs])
        state = pickle.dumps(outs[0][1])
    assert sorted(taken) == everything(sizes)


def test_steps_cost_all_ranks_the_same_over_uneven_shards() -> None:
    """Rank 1's sequences are three times as long. Off, local: nothing crosses. Reservoir, global: little remains.

    The median, since a sample longer than all others is one step's alone, in whatever mode.
    """

    def run(mode: str) -> float:
        def work(line: Line) -> list[RankBatch[int]]:
            rng = np.random.default_rng(line.rank)
            lengths = (rng.lognormal(4, 1.0, 32 * 48) * (3 if line.rank == 1 else 1)).astype(int).tolist()
            node = BalancedExchange(
                IterableSource(lengths),
                length=int,
                batch_size=32,
                mode=mode,
                channel=line,  # type: ignore[arg-type]
            )
            return list(node)

        costs = np.array([[sum(batch.samples) for batch in out] for out in on_all_ranks(4, work)])
        return float(np.median([bubble(step) for step in costs.T[16:48]]))

    off, local, reservoir, whole = (run(mode) for mode in MODES)
    assert off > 0.3
    assert local > 0.3  # what one rank has too much of, no order of its own mends
    assert reservoir < 0.02 * off
    assert whole < 0.02 * off


def test_a_rank_without_data_works_on_what_the_others_read() -> None:
    sizes = [0, 6]
    outs = on_all_ranks(2, lambda line: list(exchange(line, sizes, mode="global")))
    assert [batch.count for batch in outs[0]] == [1, 1] or [batch.count for batch in outs[0]] == [2, 2]
    padded = on_all_ranks(2, lambda line: list(exchange(line, sizes, mode="off")))
    assert [batch.is_padding for batch in padded[0]] == [True, True]
    assert [batch.samples for batch in padded[0]] == [(shard(1, 6)[0],)] * 2
    assert [batch.loss_scale for batch in padded[0]] == [0.0, 0.0]
    assert on_all_ranks(2, lambda line: list(exchange(line, sizes, mode="global", uneven="drop"))) == [[], []]


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_is_alone_has_every_sample(mode: str) -> None:
    node = exchange(Line(type("Alone", (), {"world_size": 1})(), 0), [7], mode=mode)  # type: ignore[arg-type]
    batches = list(node)
    assert samples_of([batches]) == everything([7])
    assert [batch.loss_scale for batch in batches] == [1 / 3, 1 / 3, 1.0]


def test_sessions_move_whole_and_their_impressions_scale_the_loss() -> None:
    """Units are sessions of 1..5 impressions; counts by rank vary, and the scale makes their sum the global mean."""
    sessions = {rank: [(rank, n, 1 + (n * (rank + 1)) % 5) for n in range(12)] for rank in range(2)}

    def work(line: Line) -> list[RankBatch[Any]]:
        return list(
            BalancedExchange(
                IterableSource(sessions[line.rank]),
                length=lambda session: session[2],
                count=lambda session: session[2],
                batch_size=4,
                equal_count=False,
                channel=line,
            )
        )

    outs = on_all_ranks(2, work)
    assert samples_of(outs) == sorted(sessions[0] + sessions[1])
    for first, second in zip(*outs, strict=True):
        assert first.count == sum(session[2] for session in first.samples)
        assert first.global_count == second.global_count == first.count + second.count
        assert (first.loss_scale * first.count + second.loss_scale * second.count) / 2 == pytest.approx(1.0)


def test_padded_costs_are_evened_out_by_counts() -> None:
    """Of 8, 2 x 7 in one step: one rank gets the 8 alone (64), the other the seven 2s (7 * 4 = 28)."""
    lengths = [[8, 2, 2, 2], [2, 2, 2, 2]]

    def work(line: Line) -> list[RankBatch[int]]:
        cost = CostModel(linear=0.0, quadratic=1.0, padded=True)
        return list(
            BalancedExchange(
                IterableSource(lengths[line.rank]), length=int, batch_size=4, cost=cost, equal_count=False, channel=line
            )
        )

    outs = on_all_ranks(2, work)
    assert [[sorted(batch.samples) for batch in out] for out in outs] == [[[8]], [[2] * 7]]
    assert outs[0][0].planned_costs == (64.0, 28.0)


def test_a_rank_whose_only_sample_moved_away_has_a_copy_to_work_on() -> None:
    """Of 9, 1 and 1 in one step of three ranks, padded: 9 alone, both 1s together, and nothing for rank 2."""

    def work(line: Line) -> list[RankBatch[int]]:
        source, cost = IterableSource([[9], [1], [1]][line.rank]), CostModel(linear=0.0, quadratic=1.0, padded=True)
        return list(BalancedExchange(source, length=int, batch_size=1, cost=cost, equal_count=False, channel=line))

    outs = on_all_ranks(3, work)
    assert [(out[0].samples, out[0].is_padding) for out in outs] == [((9,), False), ((1, 1), False), ((1,), True)]


def test_an_error_on_one_rank_is_every_ranks_error() -> None:
    def work(line: Line) -> list[Any]:
        def check(sample: Sample) -> bool:
            if sample[:2] == (1, 7):
                raise OSError("disk gone")
            return True

        source = Filter(IterableSource(shard(line.rank, 20)), check)
        node = BalancedExchange(source, length=lambda s: s[2], batch_size=2, window=2, channel=line)
        return list(node)

    first, second = on_all_ranks(2, work)
    assert isinstance(second, OSError)
    assert isinstance(first, RuntimeError)
    assert "rank 1 failed with" in str(first)
    assert "disk gone" in str(first)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_length_that_is_none_is_every_ranks_error(bad: float) -> None:
    def work(line: Line) -> list[Any]:
        lengths = [1.0, bad if line.rank == 0 else 2.0]
        return list(BalancedExchange(IterableSource(lengths), length=float, batch_size=2, channel=line))

    first, second = on_all_ranks(2, work)
    assert isinstance(first, ValueError)
    assert "rank 0 failed with ValueError" in str(second)


def test_a_sample_that_cannot_be_sent_is_every_ranks_error() -> None:
    def work(line: Line) -> list[Any]:
        samples = [(lambda: None, 100 if line.rank == 0 else 1) for _ in range(4)]
        return list(BalancedExchange(IterableSource(samples), length=lambda s: s[1], batch_size=4, channel=line))

    for out in on_all_ranks(2, work):
        assert isinstance(out, Exception)
        assert "pickle" in str(out).lower() or "local object" in str(out).lower()


def test_a_rank_that_is_shut_down_early_ends_the_others() -> None:
    """Rank 1 stops after one step; rank 0 learns of it, or finds the barrier broken, and does not wait for ever."""

    def work(line: Line) -> list[Any]:
        node = exchange(line, [60, 60])
        if line.rank == 0:
            return list(node)
        next(node)
        node.shutdown()
        line.ranks.barrier.abort()  # its process ends
        with pytest.raises(RuntimeError):
            list(node)
        return []

    first, second = on_all_ranks(2, work)
    assert isinstance(first, Exception)
    assert second == []


def test_resizing_a_stage_upstream_changes_no_batch() -> None:
    def work(line: Line, turns: list[int]) -> list[RankBatch[Sample]]:
        stage = ElasticMapper(IterableSource(shard(line.rank, 40)), lambda s: (*s[:2], s[2] + 1), 1)
        node = BalancedExchange(stage, length=lambda s: s[2], batch_size=3, window=2, channel=line)
        out: list[RankBatch[Sample]] = []
        for number, batch in enumerate(node):
            out.append(batch)
            if number < len(turns):
                stage.resize(turns[number])
        node.shutdown()
        return out

    still = on_all_ranks(2, lambda line: work(line, []))
    assert on_all_ranks(2, lambda line: work(line, [4, 2, 1, 3])) == still


def test_bubbles_name_who_waited_and_for_whom() -> None:
    """Rank 1 takes 3 s a step, rank 0 takes 1 s: 2 s of 6 are waiting, all of it rank 0's."""

    def work(line: Line) -> Any:
        node = exchange(line, [90, 90], window=2)
        for _ in node:
            node.observe(1.0 + 2.0 * line.rank)
        return node.bubbles

    first, second = on_all_ranks(2, work)
    assert first == second
    assert first.measured == pytest.approx(1 - 2 / 3)
    assert (first.waited, first.waited_for) == (0, 1)
    assert first.wait_s == (2.0 * first.num_steps, 0.0)


def test_the_cost_is_fitted_alike_on_all_ranks_and_kept_in_the_state() -> None:
    """Steps take 0.01 s and a microsecond per L**2: the model told nothing of that finds it."""

    def work(line: Line) -> Any:
        cost = CostModel(min_steps=8)
        node = exchange(line, [300, 300], cost=cost, batch_size=4)
        for batch in node:
            node.observe(0.01 + 1e-6 * sum(sample[2] ** 2 for sample in batch.samples))
        return cost.coefficients, node.state_dict()

    (first, state), (second, _) = on_all_ranks(2, work)
    assert first == second
    assert first == pytest.approx((0.01, 0.0, 1e-6, 1.0), abs=1e-9)
    again = CostModel()
    again.load_state_dict(state["cost"])
    assert again.quadratic == pytest.approx(1e-6)


def test_a_node_alone_cannot_be_resumed_on_other_numbers_of_ranks() -> None:
    def work(line: Line, state: Any = None) -> Any:
        node = BalancedExchange(IterableSource(range(30)), length=int, batch_size=2, channel=line)
        node.reset(state)
        next(node)
        node.shutdown()
        return node.state_dict()

    state = on_all_ranks(2, work)[0]
    for out in on_all_ranks(3, lambda line: work(line, state)):
        assert isinstance(out, ConfigError)
        assert "make(shard, num_shards)" in str(out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 makes no batch"),
        ({"mode": "all"}, "mode='all' is unknown"),
        ({"uneven": "join"}, "uneven='join' is unknown"),
        ({"window": 0}, "window=0 has no step"),
        ({"mode": "local", "equal_count": False}, "is for mode='global'"),
        ({"cost": CostModel(padded=True)}, "Set mode='global' and equal_count=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_construction(settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"length": int, "batch_size": 2, **settings}
    with pytest.raises(ConfigError, match=message):
        BalancedExchange(IterableSource([1]), **arguments)


def test_a_state_of_other_settings_is_refused() -> None:
    node = BalancedExchange(IterableSource(range(9)), length=int, batch_size=2)
    next(node)
    state = node.state_dict()
    node.shutdown()
    with pytest.raises(ConfigError, match="would mean other samples"):
        BalancedExchange(IterableSource(range(9)), length=int, batch_size=3).reset(state)


def test_counts_of_a_multiset_are_what_the_laws_compare() -> None:
    assert Counter(everything([2, 1])) == Counter(shard(0, 2) + shard(1, 1))
