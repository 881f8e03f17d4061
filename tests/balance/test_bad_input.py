"""Costs of zero, a giant among dwarfs, fewer samples than ranks, ranks without data, one rank; and what is no input."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
import pytest

from lightning_intune.balance import BalancedBatcher, BalancedExchange, CostModel, RankBatch, loss_scale
from lightning_intune.balance.channel import GlooChannel
from lightning_intune.balance.lengths import Lengths
from lightning_intune.errors import ConfigError
from lightning_intune.flow import IterableSource
from tests.balance.ranks import Line, on_all_ranks

MODES = ["off", "local", "reservoir", "global"]


def outs_of(lengths: list[list[int]], mode: str, **settings: Any) -> list[list[RankBatch[int]]]:
    def work(line: Line) -> list[RankBatch[int]]:
        settings_here: dict[str, Any] = {"batch_size": 2, "window": 2, "mode": mode, **settings}
        return list(BalancedExchange(IterableSource(lengths[line.rank]), length=int, channel=line, **settings_here))

    outs = on_all_ranks(len(lengths), work)
    assert not [out for out in outs if isinstance(out, Exception)], outs
    return outs


def check(lengths: list[list[int]], outs: list[list[RankBatch[int]]]) -> None:
    """Every sample once, as many steps on all ranks, and scales that make each step a mean."""
    got = sorted(sample for out in outs for batch in out if not batch.is_padding for sample in batch.samples)
    assert got == sorted(sample for part in lengths for sample in part)
    assert {len(out) for out in outs} == {-(-max(map(len, lengths)) // 2)}
    for step in zip_longest(*outs):
        assert sum(batch.loss_scale * batch.count for batch in step) / len(outs) == pytest.approx(1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "lengths",
    [
        [[0] * 7, [0] * 4],  # nothing costs anything
        [[0, 3, 0, 0], [0, 0]],
        [[10_000] + [1] * 8, [1] * 9, [1] * 5],  # one costs more than all others
        [[5], [], [], []],  # fewer samples than ranks, and ranks without data
        [[], [4, 1, 9, 2, 7]],
        [[1, 2, 3]],  # one rank
    ],
    ids=["zeros", "mostly zeros", "a giant", "one sample", "no data on rank 0", "one rank"],
)
def test_odd_inputs_are_dealt_out_like_any_other(lengths: list[list[int]], mode: str) -> None:
    check(lengths, outs_of(lengths, mode))
    check(lengths, outs_of(lengths, mode, cost=CostModel(linear=0.0, quadratic=1.0)))
    if mode == "global":
        check(lengths, outs_of(lengths, mode, equal_count=False))
        padded = CostModel(linear=0.0, quadratic=1.0, padded=True)
        check(lengths, outs_of(lengths, mode, equal_count=False, cost=padded))


def test_no_rank_has_any_data() -> None:
    for mode in MODES:
        assert outs_of([[], []], mode) == [[], []]


def test_a_giants_rank_gets_nothing_else_where_counts_may_vary() -> None:
    first, second = outs_of([[10_000, 1], [1, 1]], "global", equal_count=False)
    assert sorted([first[0].samples, second[0].samples], key=len) == [(10_000,), (1, 1, 1)]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["length", "row", "function", "count"])
def test_what_is_no_cost_or_count_is_every_ranks_error_at_once(bad: float, where: str) -> None:
    def work(line: Line) -> list[Any]:
        at_fault = line.rank == 1
        lengths: dict[str, Any] = {
            "length": lambda n: bad if at_fault and n == 3 else n,
            "row": lambda n: [1.0, bad] if at_fault and n == 3 else [n],
        }
        cost = CostModel(function=lambda x: np.where(x == 3, bad, x)) if where == "function" else None
        node = BalancedExchange(
            IterableSource([1, 2, 3, 4] if at_fault else [1, 2, 5, 4]),
            length=lengths.get(where, int),
            count=(lambda n: bad if at_fault and n == 3 else 1) if where == "count" else None,
            cost=cost,
            batch_size=4,
            channel=line,
        )
        return list(node)

    for out in on_all_ranks(2, work):
        assert isinstance(out, ValueError | RuntimeError)
        assert "ValueError" in f"{type(out).__name__} {out}"


def test_a_padded_cost_of_sessions_of_several_lengths_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="of one length per sample"):
        Lengths.of([[1, 2]], list).costs(CostModel(padded=True))
    node = BalancedBatcher(IterableSource([[1, 2]]), length=list, max_cost=9.0, cost=CostModel(padded=True))
    with pytest.raises(ValueError, match="of one length per sample"):
        list(node)


def test_lengths_may_be_numbers_lists_arrays_and_tensors() -> None:
    import torch

    cost = CostModel(linear=0.0, quadratic=1.0)
    for samples in ([2, 3], [2.0, 3.0], [np.int64(2), np.float32(3)], [torch.tensor(2), torch.tensor(3)]):
        assert Lengths.of(samples, lambda x: x).costs(cost).tolist() == [4.0, 9.0]
    mixed = Lengths.of([[1, 2], 3, np.array([], int), torch.tensor([1, 1])], lambda x: x)
    assert mixed.costs(cost).tolist() == [5.0, 9.0, 0.0, 2.0]
    assert Lengths.of([], int).costs(cost).tolist() == []
    assert Lengths.of([70_000], int).values.dtype == np.uint32
    assert Lengths.of([7, 300], int).values.dtype == np.uint16


def test_small_print() -> None:
    with pytest.raises(ConfigError, match=r"timeout_s=0\.0 waits for nobody"):
        GlooChannel(0.0)
    with pytest.raises(ConfigError, match=r"drop_last=True is for batch_size="):
        BalancedBatcher(IterableSource([1]), length=int, max_cost=3.0, drop_last=True)
    assert loss_scale(0, 4) == 0.0
    learner = CostModel(learns=False)
    for _ in range(99):
        learner.observe([5], 7.0)
    assert learner.coefficients == (0.0, 1.0, 0.0, 1.0)
