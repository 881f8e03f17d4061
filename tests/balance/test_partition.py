"""Plans: laws of counts and loads, the same results without numba, and input that makes no sense."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.balance import kernels, partition, partition_by_cost, rebalance
from lightning_intune.balance.division import (
    bubble,
    even_counts,
    karmarkar_karp,
    loads,
    partition_padded,
    zig_zag,
)
from lightning_intune.errors import ConfigError

COSTS = st.lists(st.one_of(st.integers(0, 50).map(float), st.floats(0, 1e6)), max_size=60)
RANKS = st.integers(1, 7)


@pytest.fixture(scope="module")
def plain() -> Any:
    """The kernels as they are where numba is not installed."""
    spec = importlib.util.spec_from_file_location("plain_kernels", Path(kernels.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _: None)
        spec.loader.exec_module(module)
    assert not module.HAS_NUMBA
    return module


@given(costs=COSTS, num_ranks=RANKS)
def test_counts_differ_by_one_at_most(costs: list[float], num_ranks: int) -> None:
    for plan in (partition_by_cost, zig_zag, karmarkar_karp):
        counts = np.bincount(plan(costs, num_ranks), minlength=num_ranks)
        assert counts.sum() == len(costs)
        assert counts.max() - counts.min() <= 1


@given(costs=COSTS, num_ranks=RANKS)
def test_free_counts_are_within_four_thirds_of_the_best(costs: list[float], num_ranks: int) -> None:
    """Graham's bound for LPT: no rank over 4/3 of the least possible, which is the mean or the largest at least."""
    ranks = partition_by_cost(costs, num_ranks, equal_count=False)
    largest = loads(costs, ranks, num_ranks).max()
    ordered = sorted(costs, reverse=True)
    pair = ordered[num_ranks - 1] + ordered[num_ranks] if len(ordered) > num_ranks else 0.0
    best = max(sum(costs) / num_ranks, max(costs, default=0.0), pair)
    assert largest <= 4 / 3 * best * (1 + 1e-6)


@given(costs=st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8))
def test_two_ranks_come_near_the_best_of_all_plans(costs: list[float]) -> None:
    least = min(
        max(total, sum(costs) - total)
        for size in {len(costs) // 2, -(-len(costs) // 2)}
        for total in map(sum, itertools.combinations(costs, size))
    )
    assert loads(costs, partition_by_cost(costs, 2), 2).max() <= least * 7 / 6 + 20 / 6


@given(costs=COSTS, num_ranks=RANKS, seed=st.integers(0, 9), equal_count=st.booleans())
def test_swaps_never_make_the_costliest_rank_costlier(
    costs: list[float], num_ranks: int, seed: int, equal_count: bool
) -> None:
    given_ranks = np.random.default_rng(seed).integers(0, num_ranks, len(costs))
    ranks = rebalance(costs, given_ranks, num_ranks, max_moved_share=1.0, equal_count=equal_count)
    before, after = loads(costs, given_ranks, num_ranks), loads(costs, ranks, num_ranks)
    assert after.max(initial=0.0) <= before.max(initial=0.0) * (1 + 1e-6) + 1e-9
    if equal_count:
        assert (np.bincount(ranks, minlength=num_ranks) == np.bincount(given_ranks, minlength=num_ranks)).all()


@given(costs=COSTS, num_ranks=RANKS, seed=st.integers(0, 9), equal_count=st.booleans())
def test_without_numba_the_plans_are_the_same(
    plain: Any, costs: list[float], num_ranks: int, seed: int, equal_count: bool
) -> None:
    units = np.array(costs, np.int64)
    base = np.random.default_rng(seed).integers(0, num_ranks, len(costs))
    assert (kernels.order_descending(units) == plain.order_descending(units)).all()
    for kernel in (kernels, plain):
        assert kernel is plain or kernels.HAS_NUMBA
    dealt, dealt_plain = (k.deal(units, num_ranks, equal_count=equal_count) for k in (kernels, plain))
    assert (dealt == dealt_plain).all()
    swapped, swapped_plain = (
        k.swap(units, base, num_ranks, max_moved=40, equal_count=equal_count) for k in (kernels, plain)
    )
    assert (swapped == swapped_plain).all()


def test_without_numba_large_plans_are_the_same(plain: Any) -> None:
    """Large enough for the radix sort, with many equal costs and 32-bit ones."""
    rng = np.random.default_rng(0)
    units = np.minimum(np.exp(rng.normal(8, 3, 20_000)), 2**32 - 1).astype(np.int64)
    base = rng.integers(0, 16, len(units))
    assert (kernels.order_descending(units) == plain.order_descending(units)).all()
    assert (kernels.deal(units, 16, equal_count=True) == plain.deal(units, 16, equal_count=True)).all()
    first, second = (k.swap(units, base, 16, max_moved=400) for k in (kernels, plain))
    assert (first == second).all()
    assert 0 < (first != base).sum() <= 400


def test_few_moves_make_random_batches_equal() -> None:
    """64 ranks x 128 samples: the bubble is cut by 99 %, and under 2 % of the samples move."""
    rng = np.random.default_rng(1)
    costs = rng.lognormal(4, 1, 64 * 128)
    base = np.repeat(np.arange(64), 128)
    ranks = rebalance(costs, base, 64)
    assert bubble(loads(costs, ranks, 64)) < 0.01 * bubble(loads(costs, base, 64))
    assert (ranks != base).mean() < 0.02
    assert bubble(loads(costs, partition_by_cost(costs, 64), 64)) < 0.001 * bubble(loads(costs, base, 64))


@given(lengths=st.lists(st.integers(1, 9), max_size=9), num_ranks=st.integers(1, 3))
def test_a_padded_plan_is_the_best_of_all(lengths: list[int], num_ranks: int) -> None:
    def largest(ranks: Any) -> float:
        parts = [[x for x, rank in zip(lengths, ranks, strict=True) if rank == r] for r in range(num_ranks)]
        return max((len(part) * max(part) ** 2 for part in parts if part), default=0)

    ordered = sorted(lengths, reverse=True)
    cuts = itertools.combinations_with_replacement(range(len(lengths) + 1), num_ranks - 1)
    best = min(
        max(
            len(part) * part[0] ** 2 if part else 0
            for part in (ordered[a:b] for a, b in itertools.pairwise([0, *cut, len(lengths)]))
        )
        for cut in cuts
    )
    assert largest(partition_padded(lengths, num_ranks)) == best


def test_hand_worked_plans() -> None:
    assert partition is partition_by_cost
    assert partition_by_cost([10.0, 1.0, 1.0, 1.0], 2).tolist() == [0, 1, 1, 0]  # a giant: its rank is the pace
    assert partition_by_cost([10.0, 1.0, 1.0, 1.0], 2, equal_count=False).tolist() == [0, 1, 1, 1]
    assert partition_by_cost([3.0, 1.0], 4).tolist() == [0, 1]  # fewer samples than ranks
    assert partition_by_cost([0.0] * 4, 2).tolist() in ([0, 1, 0, 1], [0, 0, 1, 1])
    assert partition_by_cost([], 3).tolist() == []
    assert partition_by_cost([5.0, 2.0], 1).tolist() == [0, 0]
    assert even_counts([1, 1, 1, 1, 1], 2).tolist() == [1, 1, 1, 0, 0]
    assert bubble([3.0, 0.0, 0.0]) == pytest.approx(2 / 3)
    assert bubble([0.0, 0.0]) == 0.0
    assert bubble([]) == 0.0


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "plan", [partition_by_cost, zig_zag, karmarkar_karp, partition_padded], ids=lambda p: p.__name__
)
def test_a_cost_that_is_none_is_named(plan: Any, bad: float) -> None:
    with pytest.raises(ValueError, match="sample 1 has cost"):
        plan([1.0, bad], 2)
    with pytest.raises(ConfigError, match="num_ranks=0 takes no sample"):
        plan([1.0], 0)


def test_ranks_that_are_none_are_refused() -> None:
    for ranks in ([0], [0, 2], [0, -1]):
        with pytest.raises(ValueError, match="one rank below 2 for each of 2 samples"):
            rebalance([1.0, 2.0], ranks, 2)
