"""Transports say what they need, and a shaped link is as slow as it says."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError
from lightning_intune.overlap import (
    SGD,
    Adam,
    GlooTransport,
    HostRingTransport,
    Link,
    OverlappedTrainPipeline,
    Table,
    make_transport,
    nccl,
)
from lightning_intune.overlap.copy_engine import CopyEngineTransport
from lightning_intune.overlap.nccl import NcclTransport
from lightning_intune.overlap.needs import Host, look
from lightning_intune.overlap.parcels import swap
from lightning_intune.overlap.placement import placed
from lightning_intune.overlap.request import request
from lightning_intune.overlap.shard import Shard
from lightning_intune.overlap.stack import Stack
from tests.overlap.gloo_ranks import steps
from tests.overlap.ranks import Rank, on_ranks
from tests.overlap.training import MIXED, OPTIMIZERS, Model, placements, samples


def host(**found: Any) -> Host:
    """A machine with two devices and a NCCL that spares multiprocessors, but for what `found` says."""
    settings: dict[str, Any] = {
        "torch_version": "2.13.0",
        "has_distributed": True,
        "num_devices": 2,
        "nccl_version": "2.28.9",
        "has_zero_cta": True,
        "symmetric_backend": "CUDA",
    }
    return Host(**(settings | found))


@pytest.mark.parametrize(
    ("name", "found", "unmet", "told"),
    [
        ("gloo", {"has_distributed": False}, "torch.distributed", "torch.distributed: not in this torch"),
        ("host_ring", {"has_distributed": False}, "torch.distributed", "torch.distributed: not in this torch"),
        ("nccl", {"num_devices": 0}, "a CUDA device", r"a CUDA device: 0 \(torch 2.13.0\); NCCL: 2.28.9"),
        ("nccl", {"nccl_version": None}, "NCCL", "NCCL: none in this torch"),
        ("copy_engine", {"num_devices": 1}, "2 CUDA devices on this node", "this node: 1"),
        ("copy_engine", {"symmetric_backend": None}, "torch's symmetric memory", "memory: no backend for CUDA devices"),
    ],
)
def test_a_transport_that_cannot_run_says_what_it_wants_and_none_stands_in(
    name: str, found: dict[str, Any], unmet: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' cannot run here, for want of: {unmet}\. It needs.*{told}"):
        make_transport(name, host=host(**found))


@pytest.mark.parametrize("name", ["nccl", "copy_engine"])
def test_what_needs_a_device_is_refused_on_a_machine_without(name: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert look().num_devices == 0
    with pytest.raises(ConfigError, match=f"'{name}' cannot run here, for want of: .*CUDA device"):
        make_transport(name)


@pytest.mark.parametrize(("has_zero_cta", "told"), [(True, "2.28.9, and asks for it"), (False, "and goes without")])
def test_nccl_says_whether_it_spares_multiprocessors_and_takes_no_cpu_tensors(has_zero_cta: bool, told: str) -> None:
    transport = NcclTransport(host=host(has_zero_cta=has_zero_cta))
    assert told in transport.describe()
    assert "2 CUDA device(s)" in transport.describe()
    with pytest.raises(RuntimeError, match="nccl on rank 0 was given a tensor on 'cpu', and carries none but CUDA"):
        transport.all_to_all(torch.zeros(1), [1], [1])


@pytest.mark.parametrize("has_zero_cta", [True, False])
def test_the_policy_is_set_where_nccl_has_it_and_left_alone_elsewhere(
    monkeypatch: pytest.MonkeyPatch, has_zero_cta: bool
) -> None:
    class Group:
        NCCL_CTA_POLICY_ZERO = 2

        @staticmethod
        def Options() -> Any:  # noqa: N802 - torch's name
            return SimpleNamespace(config=SimpleNamespace())

    monkeypatch.setattr(dist, "ProcessGroupNCCL", Group, raising=False)
    options = nccl._options(host(has_zero_cta=has_zero_cta))
    assert vars(options.config) == ({"cta_policy": 2} if has_zero_cta else {})


def test_a_pipeline_logs_its_transport_once_and_refuses_one_that_cannot_carry_its_tables(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone: Any = Rank(0, GlooTransport(), None)  # pyright: ignore[reportArgumentType]
    model = Model(alone, OPTIMIZERS["sgd"], torch.float32, MIXED)
    optimizer = torch.optim.SGD(model.dense.parameters(), lr=0.1)
    with caplog.at_level(logging.INFO, "lightning_intune"):
        pipeline = OverlappedTrainPipeline(model, optimizer)
        for _ in range(2):  # epochs
            assert len(steps(pipeline, samples(0, 2, overlap=0.5, dtype=torch.float32))) == 2
    assert pipeline.shutdown()
    assert caplog.messages == ["overlap: gloo: needs torch.distributed on CPUs; found 1 rank(s)"]
    with pytest.raises(ConfigError, match=r"tables are on 'cpu', and this transport carries .* on cuda only \(nccl: "):
        OverlappedTrainPipeline(model, optimizer, transport=NcclTransport(host=host()))


def test_nccl_that_was_not_opened_says_so_and_alone_gives_back_what_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NcclTransport, "device_types", ("cpu",))
    transport, sent = NcclTransport(host=host()), torch.arange(2)
    assert transport.all_to_all(sent, [2], [2]) is sent
    transport._control = SimpleNamespace(rank=0, world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match=r"nccl is not open. Call open\(\) on every rank first"):
        transport.all_to_all(sent, [1, 1], [1, 1])


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'gloo', 'host_ring', 'nccl', 'copy_engine'"):
        make_transport("carrier pigeon")
    assert isinstance(make_transport("gloo", timeout_s=3.0), GlooTransport)
    assert isinstance(make_transport("host_ring", timeout_s=3.0), HostRingTransport)
    assert isinstance(make_transport("nccl", host=host(), timeout_s=3.0), NcclTransport)
    assert isinstance(make_transport("copy_engine", host=host(), timeout_s=3.0), CopyEngineTransport)


def test_a_shaped_link_says_so_and_takes_its_own_time_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    link = Link(delay_s=0.5, bytes_per_s=8.0)
    transport = GlooTransport(link=link, sleep=slept.append)
    assert "SHAPED to Link(delay_s=0.5, bytes_per_s=8.0)" in transport.describe()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)

    class Quick:
        rank, world_size = 0, 2

        def all_to_all(self, sent: torch.Tensor, sizes_out: list[int], sizes_in: list[int]) -> torch.Tensor:
            return torch.zeros(sum(sizes_in), dtype=sent.dtype)

    transport._channel = Quick()
    transport.all_to_all(torch.zeros(7), [5, 2], [0, 4])
    assert slept == [0.5 + 4 * 4 / 8]  # 4 floats come from the other rank, 2 go there; own ones cross no link


@pytest.mark.parametrize("settings", [{"delay_s": -1.0}, {"bytes_per_s": 0.0}, {"delay_s": float("nan")}])
def test_no_link_is_described_by_such_numbers(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="describe no link"):
        Link(**settings)


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=3, max_size=3), min_size=1, max_size=3
    )
)
def test_rows_of_several_stacks_arrive_by_sender_in_their_order(counts: list[list[list[int]]]) -> None:
    """`counts[stack][from][to]`; a row says its stack, sender, receiver and number."""

    def work(rank: Rank) -> list[list[list[float]]]:
        rank.transport.open()
        values = [
            torch.tensor(
                [[stack, rank.rank, to, n] for to in range(3) for n in range(table[rank.rank][to])], dtype=torch.int64
            ).reshape(-1, 4)
            for stack, table in enumerate(counts)
        ]
        counts_in = [[row[rank.rank] for row in table] for table in counts]
        got = swap(rank.transport, values, [table[rank.rank] for table in counts], counts_in)
        return [one.tolist() for one in got]

    for rank, got in enumerate(on_ranks(3, work)):
        assert got == [
            [[stack, sender, rank, n] for sender in range(3) for n in range(table[sender][rank])]
            for stack, table in enumerate(counts)
        ]


@given(num_rows=st.lists(st.integers(1, 20), min_size=1, max_size=4), world_size=st.integers(1, 6), data=st.data())
def test_every_row_has_one_owner_and_one_place(num_rows: list[int], world_size: int, data: st.DataObject) -> None:
    tables = [
        Table(name=str(n), num_embeddings=rows, embedding_dim=1, feature_names=("a",))
        for n, rows in enumerate(num_rows)
    ]
    sharding = data.draw(st.dictionaries(st.sampled_from([one.name for one in tables]), placements(world_size)))
    stack = Stack(placed(tables, world_size, sharding), world_size)
    found = torch.cat([stack.addresses(n, torch.arange(rows)) for n, rows in enumerate(num_rows)])
    assert len(found.unique()) == sum(num_rows)
    for table, rows in enumerate(num_rows):
        owned = [stack.owned(table, rank) for rank in range(world_size)]
        assert [one for ids, _ in owned for one in range(rows)[ids]] == list(range(rows))
        for rank, (ids, places) in enumerate(owned):
            addresses = stack.addresses(table, torch.arange(rows)[ids])
            assert (addresses - rank * stack.num_rows).tolist() == list(range(stack.num_rows))[places]
        if stack.tables[table].sharding == "table_wise":
            assert sum(ids.stop > ids.start for ids, _ in owned) == 1
    shards = [Shard(stack, Adam(lr=1.0), rank, torch.float32) for rank in range(world_size)]
    for values in ("weights", "last_reader"):  # no rank has room for what it does not own
        assert sum(len(getattr(shard, values)) for shard in shards) == sum(num_rows)
    assert sum(len(values) for shard in shards for values in shard.state.values()) == 2 * sum(num_rows)
    wrong = data.draw(st.sampled_from([-1, num_rows[0]]))
    with pytest.raises(IndexError, match=f"id {wrong} is outside"):
        stack.addresses(0, torch.tensor([0, wrong]))


@pytest.mark.parametrize(
    ("num_tables", "by_frequency", "cut", "whole"),
    [(8, True, 3.5, 1.0), (8, False, 1.0, 1.0), (1, True, 3.5, 4.0), (1, False, 1.0, 4.0)],
)
def test_blocks_of_ids_numbered_by_frequency_load_one_rank_and_a_whole_table_its_owner(
    num_tables: int, by_frequency: bool, cut: float, whole: float
) -> None:
    rng = np.random.default_rng(0)
    zipf = [np.minimum(rng.zipf(1.2, 20_000), 10**6) - 1 for _ in range(num_tables)]
    ids = zipf if by_frequency else [rng.permutation(10**6)[one] for one in zipf]
    for sharding, expected in (("row_wise", cut), ("table_wise", whole)):
        tables = [
            Table(name=str(n), num_embeddings=10**6, embedding_dim=1, feature_names=("a",), sharding=sharding)
            for n in range(num_tables)
        ]
        made = request(Stack(placed(tables, 4), 4), [(n, torch.from_numpy(one)) for n, one in enumerate(ids)])
        assert max(made.counts) / (len(made) / 4) == pytest.approx(expected, rel=0.05)


@given(rows=st.lists(st.integers(0, 5), max_size=30))
def test_a_row_moves_by_the_sum_of_its_gradients_however_often_it_stands_there(rows: list[int]) -> None:
    table = Table(name="t", num_embeddings=6, embedding_dim=1, feature_names=("a",))
    shard = Shard(Stack([table], 1), SGD(lr=1.0), 0, torch.float64)
    before = shard.weights.clone()
    shard.update(torch.tensor(rows, dtype=torch.int64), torch.ones(len(rows), 1, dtype=torch.float64), lr=1.0, step=1)
    moved = [rows.count(row) for row in range(6)]
    torch.testing.assert_close(before - shard.weights, torch.tensor(moved, dtype=torch.float64).unsqueeze(1))
