"""Sessions as the unit that moves: from the session layout to IKJT batches whose gradients are the global batch's."""

from __future__ import annotations

import pickle
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.balance import BalancedBatcher, BalancedExchange, CostModel, RankBatch, mean_loss
from lightning_intune.balance.feed import ShareToBatch, TableShare
from lightning_intune.balance.measure import MeasureImpressions, MeasureSessions
from lightning_intune.balance.rows import Row, TableRows, joined
from lightning_intune.config import Schema, SparseFeature
from lightning_intune.dedup import Batch, InverseKeyedJaggedTensor, KeyedJagged
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.sessions import SessionsToBatch
from lightning_intune.flow import IterableSource
from tests.balance.ranks import Line, on_all_ranks

LEVEL = ["user"]
SCHEMA = Schema(
    sparse=[
        SparseFeature(name="user", num_embeddings=64, transform="id"),
        SparseFeature(name="history", num_embeddings=64, transform="id"),
    ],
    labels=["click"],
    weight="weight",
)
TO_BATCH = SessionsToBatch(SCHEMA, session_level=LEVEL, plan=DedupPlan.of(["history"]))
MEASURE = MeasureSessions(["history"], level=LEVEL, is_deduplicated=True)


def sessions(rank: int, num_sessions: int) -> pa.Table:
    """Up to 6 impressions each; a history stays from one to the next more often than not."""
    rng = np.random.default_rng([rank, num_sessions])
    rows: list[dict[str, Any]] = []
    for number in range(num_sessions):
        histories: list[list[int]] = []
        for _ in range(rng.integers(1, 7)):
            stays = histories and rng.random() < 0.6
            histories.append(histories[-1] if stays else rng.integers(0, 60, int(rng.lognormal(2, 1)) + 1).tolist())
        clicks = (rng.random(len(histories)) < 0.4).astype(int).tolist()
        weights = rng.integers(1, 4, len(histories)).astype(float).tolist()
        user = [rank, number]
        rows.append({"user": user, "history": histories, "click": clicks, "weight": weights})
    types = {"user": pa.list_(pa.int64()), "history": pa.list_(pa.list_(pa.int64()))}
    schema = pa.schema({**types, "click": pa.list_(pa.int64()), "weight": pa.list_(pa.float64())})
    return pa.Table.from_pylist(rows, schema=schema)


def tables(rank: int, num_sessions: int) -> list[pa.Table]:
    whole = sessions(rank, num_sessions)
    return [whole.slice(at, 5) for at in range(0, num_sessions, 5)]


def exchange(line: Line, sizes: list[int], **settings: Any) -> BalancedExchange[Row]:
    def make(number: int, num_shards: int) -> TableRows:
        return TableRows(IterableSource(tables(number, sizes[number] if num_shards == len(sizes) else 0)), MEASURE)

    settings = {"cost": CostModel(quadratic=0.1), "batch_size": 4, "window": 3, "equal_count": False, **settings}
    return BalancedExchange(make, length=attrgetter("length"), count=attrgetter("count"), channel=line, **settings)


def users(rows: Any) -> list[list[int]]:
    return sorted(row.table["user"][row.place].as_py() for row in rows)


def as_batch(share: RankBatch[Row]) -> Batch:
    batch = TO_BATCH(joined(share.samples))
    scale = torch.tensor(share.loss_scale, dtype=torch.float64)
    return Batch(dense=batch.dense, sparse=batch.sparse, labels=batch.labels, weights=batch.weights, loss_scale=scale)


def losses(tables: torch.nn.ParameterDict, batch: Batch) -> torch.Tensor:
    """Of each impression; a history's encoding is computed once for each stored row."""
    bags: list[torch.Tensor] = []
    for key in ("user", "history"):
        values, lengths = batch.sparse[key]
        if isinstance(batch.sparse, InverseKeyedJaggedTensor):
            rows = batch.sparse.unique_key(key)
            values, lengths = rows.jagged[key]
        offsets = torch.cumsum(lengths.long(), 0) - lengths
        encoded = torch.tanh(torch.nn.functional.embedding_bag(values.long(), tables[key], offsets, mode="sum"))
        if isinstance(batch.sparse, InverseKeyedJaggedTensor):
            encoded = encoded.index_select(0, batch.sparse.inverse(key))
        bags.append(encoded)
    logits = (bags[0] * bags[1]).sum(dim=1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels[:, 0].double(), reduction="none")


def gradient(batches: list[Batch]) -> torch.Tensor:
    """Of the mean over the ranks of each one's loss, as DDP has it."""
    rng = torch.Generator().manual_seed(0)
    tables = torch.nn.ParameterDict(
        {key: torch.randn(64, 3, generator=rng, dtype=torch.float64) for key in ("user", "history")}
    )
    for batch in batches:
        (mean_loss(losses(tables, batch), batch) / len(batches)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in tables.values() if parameter.grad is not None])


@settings(max_examples=15)
@given(sizes=st.lists(st.integers(0, 18), min_size=2, max_size=4).filter(any), window=st.integers(1, 4))
def test_gradients_are_those_of_the_unbalanced_global_batch(sizes: list[int], window: int) -> None:
    """Weighted impressions: `count` is the sum of weights, so the scale makes the weighted global mean."""

    def work(line: Line) -> list[RankBatch[Row]]:
        weighted = MeasureSessions(["history"], level=LEVEL, is_deduplicated=True, weight="weight")
        source = TableRows(IterableSource(tables(line.rank, sizes[line.rank])), weighted)
        return list(
            BalancedExchange(
                source,
                length=attrgetter("length"),
                count=attrgetter("count"),
                batch_size=4,
                window=window,
                equal_count=False,
                channel=line,
            )
        )

    outs = on_all_ranks(len(sizes), work)
    for step in range(-(-max(sizes) // 4)):
        plain = [sessions(rank, size).slice(4 * step, 4) for rank, size in enumerate(sizes)]
        unbalanced = TO_BATCH(pa.concat_tables([part for part in plain if part.num_rows]))
        torch.testing.assert_close(
            gradient([as_batch(out[step]) for out in outs]), gradient([unbalanced]), rtol=1e-6, atol=1e-9
        )


def test_a_session_moves_whole_costs_its_own_and_counts_vary() -> None:
    sizes = [40, 40]
    outs = on_all_ranks(2, lambda line: list(exchange(line, sizes)))
    assert users(row for out in outs for share in out for row in share.samples) == [
        [rank, number] for rank in range(2) for number in range(40)
    ]
    assert any(first.count != second.count for first, second in zip(*outs, strict=True))
    assert any(len(first) != len(second) for first, second in zip(*outs, strict=True))
    assert any(row.table.num_rows == 1 for out in outs for share in out for row in share.samples)  # it came by message
    for out in outs:
        for share in out:
            # By hand: L + 0.1 * L**2 for every history of a session, once where it stays.
            cost = count = 0.0
            for row in share.samples:
                histories = row.table["history"][row.place].as_py()
                count += len(histories)
                cost += sum(len(h) + 0.1 * len(h) ** 2 for h in {tuple(h): h for h in histories}.values())
            rank = outs.index(out)
            assert share.planned_costs[rank] == pytest.approx(cost)
            assert share.count == count
            sparse = as_batch(share).sparse
            assert isinstance(sparse, InverseKeyedJaggedTensor)
            assert sparse.stride() == count


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 18), min_size=2, max_size=3).filter(any),
    mode=st.sampled_from(["off", "local", "reservoir", "global"]),
    cut=st.integers(1, 6),
    others=st.integers(1, 4),
)
def test_sessions_resume_on_any_number_of_ranks(sizes: list[int], mode: str, cut: int, others: int) -> None:
    def work(line: Line, state: Any, cut: int | None) -> tuple[list[RankBatch[Row]], Any]:
        node = exchange(line, sizes, mode=mode, equal_count=mode != "global")
        node.reset(None if state is None else pickle.loads(state))
        out = list(islice(node, cut))
        after = pickle.dumps(node.state_dict())
        node.shutdown()
        return out, after

    heads = on_all_ranks(len(sizes), lambda line: work(line, None, cut))
    tails = on_all_ranks(others, lambda line: work(line, heads[0][1], None))
    seen = [row for out, _ in [*heads, *tails] for share in out if not share.is_padding for row in share.samples]
    assert users(seen) == [[rank, number] for rank, size in enumerate(sizes) for number in range(size)]
    assert len(heads[0][1]) < 10_000


def test_batches_of_one_session_move_as_they_are() -> None:
    """A sample may be a whole `Batch` with an IKJT: it is pickled, and comes out equal."""

    def work(line: Line) -> Any:
        batches = [TO_BATCH(sessions(line.rank, 12).slice(at, 1)) for at in range(12)]
        node = BalancedExchange(
            IterableSource(batches),
            length=lambda batch: (
                batch.sparse.unique_key("history").jagged.lengths().tolist()
                if isinstance(batch.sparse, InverseKeyedJaggedTensor)
                else batch.sparse["history"][1].tolist()
            ),
            count=len,
            batch_size=3,
            equal_count=False,
            channel=line,
        )
        return list(node)

    outs = on_all_ranks(2, work)
    got = [batch for out in outs for share in out for batch in share.samples]
    expected = [TO_BATCH(sessions(rank, 12).slice(at, 1)) for rank in range(2) for at in range(12)]

    def text(batch: Batch) -> str:
        return repr([batch.sparse[key] for key in ("user", "history")]) + repr(batch.labels)

    assert sorted(map(text, got)) == sorted(map(text, expected))


def test_a_budget_counts_what_a_sessions_rows_cost() -> None:
    cost = CostModel(quadratic=0.1)
    node = BalancedBatcher(
        TableRows(IterableSource(tables(0, 40)), MEASURE), length=attrgetter("length"), max_cost=60.0, cost=cost
    )
    batches = list(node)
    costs = [sum(float(cost(row.length).sum()) for row in batch) for batch in batches]
    assert users(row for batch in batches for row in batch) == [[0, number] for number in range(40)]
    assert all(cost <= 60 or len(batch) == 1 for cost, batch in zip(costs, batches, strict=True))


def test_what_is_pickled_of_a_row_is_the_row() -> None:
    table = pa.table({"history": [[n] * 50 for n in range(1000)]})
    row = Row(table, 7, 50, 1.0)
    message = pickle.dumps(row)
    assert len(message) < 2000
    again = pickle.loads(message)
    assert (again.table.to_pylist(), again.place, again.length, again.count) == ([{"history": [7] * 50}], 0, 50, 1.0)


def test_rows_are_joined_in_their_order() -> None:
    first, second = pa.table({"n": range(5)}), pa.table({"n": range(5, 9)})
    rows = [Row(first, 1, 1, 1.0), Row(first, 2, 1, 1.0), Row(second, 3, 1, 1.0), Row(second, 0, 1, 1.0)]
    assert joined(rows)["n"].to_pylist() == [1, 2, 8, 5]


@given(cut=st.integers(0, 25))
def test_rows_of_tables_resume(cut: int) -> None:
    def node() -> TableRows:
        source = [pa.table({"n": list(range(at, at + size))}) for at, size in ((0, 3), (3, 0), (3, 8), (11, 9))]
        return TableRows(IterableSource(source), MeasureImpressions(["n"]))

    first, second = node(), node()
    head = list(islice(first, cut))
    second.reset(pickle.loads(pickle.dumps(first.state_dict())))
    assert [row.table["n"][row.place].as_py() for row in [*head, *second]] == list(range(20))


def test_lengths_of_impressions_and_their_weights() -> None:
    table = pa.table({"a": [[1, 2], None, []], "b": [5, 6, None], "w": [0.5, 2.0, 1.0]})
    measured = MeasureImpressions(["a", "b"], weight="w")(table)
    assert (measured.lengths, measured.counts) == ([3, 1, 1], [0.5, 2.0, 1.0])


def test_sessions_without_an_impression_cost_and_count_nothing() -> None:
    table = pa.table({"h": pa.array([[[1, 2]], [], None], pa.list_(pa.list_(pa.int64())))})
    measured = MeasureSessions(["h"], level=[], is_deduplicated=True)(table)
    assert [length.tolist() for length in measured.lengths] == [[2], [], []]
    assert measured.counts == [1.0, 0.0, 0.0]


def test_a_mean_loss_without_a_scale_is_the_weighted_mean() -> None:
    def batch(weights: torch.Tensor | None) -> Batch:
        empty = KeyedJagged([], torch.empty(0), torch.empty(0))
        return Batch(dense=torch.ones(2, 0), sparse=empty, labels=torch.ones(2, 1), weights=weights)

    given_losses = torch.tensor([1.0, 4.0])
    assert mean_loss(given_losses, batch(None)) == 2.5
    assert mean_loss(given_losses, batch(torch.tensor([0.5, 0.25]))) == 2.0
    assert mean_loss(given_losses, batch(torch.zeros(2))) == 0.0
    with pytest.raises(ValueError, match=r"losses have shape \[2, 1\]"):
        mean_loss(given_losses[:, None], batch(None))


def test_padding_weighs_nothing_and_others_are_scaled() -> None:
    to_batch = ShareToBatch(TO_BATCH)
    table = sessions(0, 3)
    padding = to_batch(TableShare(table=table, loss_scale=0.0, is_padding=True))
    assert padding.weights is not None
    assert not padding.weights.any()
    assert padding.loss_scale == 0.0
    share = to_batch(TableShare(table=table, loss_scale=0.25, is_padding=False))
    assert share.weights is not None
    assert share.weights.all()
    assert share.loss_scale == 0.25
    assert to_batch(TableShare(table=table, loss_scale=None, is_padding=False)).loss_scale is None
