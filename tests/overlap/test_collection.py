"""The overlapped collections beside TorchRec's own, on one rank and on several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_intune.dedup import InverseKeyedJaggedTensor, KeyedJagged
from lightning_intune.errors import ConfigError
from lightning_intune.overlap import (
    SGD,
    Adagrad,
    Adam,
    OverlappedEmbeddingBagCollection,
    OverlappedEmbeddingCollection,
    OverlappedTrainPipeline,
    Placement,
    Table,
)
from lightning_intune.overlap.placement import placed
from tests.overlap.ranks import Rank, on_ranks
from tests.overlap.training import Sharding, placements

pytest.importorskip("torchrec.modules.embedding_modules", exc_type=ImportError)
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ParameterSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

BAGS = [
    EmbeddingBagConfig(name="wide", num_embeddings=11, embedding_dim=6, feature_names=["a", "b"]),
    EmbeddingBagConfig(name="mean", num_embeddings=7, embedding_dim=4, feature_names=["c"], pooling=PoolingType.MEAN),
    EmbeddingBagConfig(name="second", num_embeddings=7, embedding_dim=4, feature_names=["c"]),
]
SEQUENCES = [
    EmbeddingConfig(name="wide", num_embeddings=11, embedding_dim=6, feature_names=["a", "b"]),
    EmbeddingConfig(name="other", num_embeddings=7, embedding_dim=6, feature_names=["c"]),
]


def jagged(seed: int, num_rows: int) -> KeyedJagged:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, (3 * num_rows,), generator=rng).int()
    return KeyedJagged(["a", "b", "c"], torch.randint(7, (int(lengths.sum()),), generator=rng), lengths)


def whole(collection: OverlappedEmbeddingBagCollection | OverlappedEmbeddingCollection) -> list[Tensor]:
    """This rank's part of every table."""
    return [part.clone() for shard in collection.shards for part in shard.parts(shard.weights)]


@settings(max_examples=10)
@given(
    world_size=st.integers(1, 4),
    num_rows=st.integers(1, 5),
    seed=st.integers(0, 999),
    repeats=st.booleans(),
    data=st.data(),
)
def test_pooled_embeddings_and_updates_are_torchrecs(
    world_size: int, num_rows: int, seed: int, repeats: bool, data: st.DataObject
) -> None:
    sharding = data.draw(st.dictionaries(st.sampled_from([one.name for one in BAGS]), placements(world_size)))
    theirs = EmbeddingBagCollection(tables=BAGS)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    batches = [jagged(10 * seed + rank, num_rows) for rank in range(world_size)]

    def work(rank: Rank) -> Any:
        ours = OverlappedEmbeddingBagCollection(BAGS, SGD(lr=0.5), sharding=sharding, transport=rank.transport)
        ours.load_state_dict(state)
        batch = batches[rank.rank]
        features: Any = InverseKeyedJaggedTensor.from_jagged(batch, [["a", "b"], ["c"]]) if repeats else None
        out = ours(batch_of(batch) if features is None else features)
        (out.values() * (1 + rank.rank)).sum().backward()
        return out.keys(), out.length_per_key(), out.values().detach(), whole(ours), ours

    done = on_ranks(world_size, work)
    total = torch.zeros(())
    for rank, (batch, one) in enumerate(zip(batches, done, strict=True)):
        expected = theirs(batch_of(batch))
        keys, dims, values, _, _ = one
        assert keys == expected.keys() == ["a", "b", "c@mean", "c@second"]
        assert dims == expected.length_per_key()
        torch.testing.assert_close(values, expected.values(), rtol=0, atol=1e-6)
        total = total + (expected.values() * (1 + rank)).sum() / world_size
    total.backward()
    for rank, (_, _, _, parts, ours) in enumerate(done):
        owned = [
            (table.name, shard.stack.owned(n, rank)[0])
            for shard in ours.shards
            for n, table in enumerate(shard.stack.tables)
        ]
        for (name, ids), part in zip(owned, parts, strict=True):
            weight = theirs.embedding_bags[name].weight
            torch.testing.assert_close(part, (weight - 0.5 * weight.grad).detach()[ids], rtol=0, atol=1e-6)


def batch_of(batch: KeyedJagged) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=batch.keys(), values=batch.values(), lengths=batch.lengths())


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("sharding", [{}, {"other": "table_wise"}], ids=["row-wise", "mixed"])
def test_sequences_are_torchrecs(world_size: int, repeats: bool, sharding: Sharding) -> None:
    theirs = EmbeddingCollection(tables=SEQUENCES)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}

    def work(rank: Rank) -> Any:
        ours = OverlappedEmbeddingCollection(SEQUENCES, SGD(lr=0.5), sharding=sharding, transport=rank.transport)
        ours.load_state_dict(state)
        batch = jagged(rank.rank, 6)
        features = InverseKeyedJaggedTensor.from_jagged(batch, [["a"], ["b", "c"]]) if repeats else batch_of(batch)
        out = ours(features)
        sum(one.values().sum() for one in out.values()).backward()
        return {key: (one.values().detach(), one.lengths()) for key, one in out.items()}, ours

    for rank, (out, ours) in enumerate(on_ranks(world_size, work)):
        expected = theirs(batch_of(jagged(rank, 6)))
        assert out.keys() == expected.keys()
        for key, (values, lengths) in out.items():
            torch.testing.assert_close(values, expected[key].values(), rtol=0, atol=0)
            assert lengths.tolist() == expected[key].lengths().tolist()
        if rank == 0:  # ids are below 7, and the last rank's rows above
            assert not torch.equal(whole(ours)[0], state["embeddings.wide.weight"][: len(whole(ours)[0])])


def test_deduplicated_features_of_torchrec_are_looked_up_as_they_are() -> None:
    batch = jagged(3, 5)
    bags = OverlappedEmbeddingBagCollection(BAGS, SGD(lr=0.5))
    vbe = InverseKeyedJaggedTensor.from_jagged(batch, [["a", "b"], ["c"]]).to_vbe_kjt()
    with torch.no_grad():
        torch.testing.assert_close(bags(vbe).values(), bags(batch_of(batch)).values())


def test_weights_scale_what_is_pooled() -> None:
    table = Table(name="t", num_embeddings=3, embedding_dim=1, feature_names=("a",))
    bags = OverlappedEmbeddingBagCollection([table], SGD(lr=0.5), is_weighted=True)
    bags.load_state_dict({"embedding_bags.t.weight": torch.tensor([[1.0], [10.0], [100.0]])})
    kjt = KeyedJaggedTensor(
        keys=["a"],
        values=torch.tensor([0, 1, 2]),
        lengths=torch.tensor([2, 1]),
        weights=torch.tensor([0.5, 2.0, 3.0]),
    )
    out = bags(kjt).values()
    assert out.tolist() == [[0.5 * 1 + 2.0 * 10], [3.0 * 100]]
    out.sum().backward()
    assert bags.state_dict()["embedding_bags.t.weight"].flatten().tolist() == [1 - 0.25, 10 - 1.0, 100 - 1.5]


def test_a_row_that_two_ranks_read_moves_once_by_the_mean_of_their_gradients() -> None:
    table = Table(name="t", num_embeddings=4, embedding_dim=1, feature_names=("a",))

    def work(rank: Rank) -> Any:
        bags = OverlappedEmbeddingBagCollection([table], Adagrad(lr=1.0), transport=rank.transport)
        bags.load_state_dict({"embedding_bags.t.weight": torch.zeros(4, 1)})
        pooled = bags.pooled(KeyedJagged(["a"], torch.tensor([1, 1, 3]), torch.tensor([3])))
        (pooled.sum() * (1 + rank.rank)).backward()
        [shard] = bags.shards
        return shard.weights.flatten().tolist(), shard.state["momentum1"].flatten().tolist()

    # Row 1: 2 from rank 0 and 4 from rank 1, 3 in the mean; row 3: 1 and 2. Adagrad steps by g / sqrt(g * g) = 1.
    assert on_ranks(2, work) == [([0.0, -1.0], [0.0, 9.0]), ([0.0, -1.0], [0.0, 2.25])]


def test_evaluation_beside_the_pipeline_sees_all_updates_and_makes_none() -> None:
    table = Table(name="t", num_embeddings=2, embedding_dim=1, feature_names=("a",))
    bags = OverlappedEmbeddingBagCollection([table], SGD(lr=1.0))
    bags.load_state_dict({"embedding_bags.t.weight": torch.zeros(2, 1)})

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags, self.scale = bags, torch.nn.Parameter(torch.ones(1))

        def forward(self, batch: dict[str, KeyedJagged]) -> Any:
            out = self.bags.pooled(batch["sparse"]) * self.scale
            return out.sum(), out.detach()

    net = Net()
    pipeline = OverlappedTrainPipeline(net, torch.optim.SGD([net.scale], lr=0.0))
    batch = {"sparse": KeyedJagged(["a"], torch.tensor([0, 1]), torch.tensor([2]))}
    batches = iter([batch, {"sparse": KeyedJagged(["a"], torch.tensor([1]), torch.tensor([1]))}])
    assert pipeline.progress(batches).tolist() == [[0.0]]
    with torch.no_grad():
        assert net(batch)[1].tolist() == [[-2.0]]
    with pytest.raises(RuntimeError, match=r"with gradients enabled outside of `progress`"):
        net(batch)
    with pytest.raises(ConfigError, match="holds rows of its next batch"):
        bags.load_state_dict({"embedding_bags.t.weight": torch.zeros(2, 1)})
    net.eval()
    assert pipeline.progress(batches).tolist() == [[-1.0]]  # evaluated, not trained on
    net.train()
    with pytest.raises(StopIteration):
        pipeline.progress(batches)
    assert bags.state_dict()["embedding_bags.t.weight"].tolist() == [[-1.0], [-1.0]]
    assert pipeline.progress(iter([batch])).tolist() == [[-2.0]]  # the next epoch
    assert pipeline.shutdown()


def test_optimizer_state_goes_out_under_torchrecs_names_and_comes_back() -> None:
    batch = jagged(1, 5)
    first = OverlappedEmbeddingBagCollection(BAGS, Adam(lr=0.1))
    first.pooled(batch).sum().backward()
    saved = first.fused_optimizer.state_dict()
    assert list(saved["state"]) == [f"embedding_bags.{name}.weight" for name in ("wide", "mean", "second")]
    assert list(saved["state"]["embedding_bags.wide.weight"]) == ["wide.exp_avg", "wide.exp_avg_sq"]
    assert saved["param_groups"] == [{"lr": 0.1, "step": 1}]
    second = OverlappedEmbeddingBagCollection(BAGS, Adam(lr=0.7))
    second.load_state_dict(first.state_dict())
    second.fused_optimizer.load_state_dict(saved)
    for one in (first, second):
        one.pooled(batch).sum().backward()
    for ours, theirs in zip(whole(first), whole(second), strict=True):
        assert torch.equal(ours, theirs)


def described(name: str, num_embeddings: int, **placing: Any) -> Table:
    return Table(name=name, num_embeddings=num_embeddings, embedding_dim=2, feature_names=("a",), **placing)


def test_whole_tables_go_biggest_first_to_the_rank_that_holds_least() -> None:
    whole = {"sharding": "table_wise"}
    tables = [
        described("a", 5, **whole),
        described("b", 9, **whole),
        described("c", 4),  # 2 rows, 2 rows, none
        described("d", 6, **whole, rank=1),
        described("e", 6, **whole),
    ]
    # Loads are 2, 2 + 6, 0: b goes to rank 2 (9), e to rank 0 (2 + 6), a to the first of the two with 8.
    assert [one.rank for one in placed(tables, 3)] == [0, 2, None, 1, 0]
    # A table twice as wide weighs twice as much.
    wide = Table(name="f", num_embeddings=5, embedding_dim=4, feature_names=("a",), sharding="table_wise")
    assert [one.rank for one in placed([tables[1], wide, tables[0]], 2)] == [1, 0, 1]


def test_what_is_said_by_name_goes_before_what_a_table_says() -> None:
    tables = [
        described("a", 5, sharding="table_wise", rank=0),
        described("b", 5),
        described("c", 5, sharding="table_wise", rank=1),
    ]
    assert [one.rank for one in placed(tables, 2, {"b": "table_wise", "c": "row_wise"})] == [0, 1, None]
    named = {"a": "table_wise", "b": Placement(sharding="table_wise", rank=0)}
    assert [one.rank for one in placed(tables, 3, named)] == [2, 0, 1]


def test_a_plan_of_torchrec_places_the_tables() -> None:
    plan = construct_module_sharding_plan(
        EmbeddingBagCollection(tables=BAGS),
        {"wide": row_wise(), "mean": table_wise(rank=1), "second": table_wise(rank=0)},
        local_size=2,
        world_size=2,
        device_type="cpu",
    )

    def work(rank: Rank) -> list[int | None]:
        bags = OverlappedEmbeddingBagCollection(BAGS, SGD(lr=1.0), sharding=plan, transport=rank.transport)
        return [one.rank for one in bags.tables.tables]

    assert on_ranks(2, work) == [[None, 1, 0]] * 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Table(name="t", num_embeddings=0, embedding_dim=1, feature_names=("a",)), "it holds nothing"),
        (lambda: Table(name="t", num_embeddings=1, embedding_dim=1, feature_names=()), "no feature looks it up"),
        (lambda: described("t", 1, sharding="column_wise"), "'column_wise' is not built"),
        (lambda: described("t", 1, rank=0), "rank=0 cannot own it, as sharding='row_wise'"),
        (lambda: described("t", 1, sharding="table_wise", rank=-1), "rank=-1 cannot own it"),
        (lambda: placed([described("t", 1, sharding="table_wise", rank=2)], 2), r"outside of the 2 rank\(s\)"),
        (lambda: placed([described("t", 1)], 2, {"u": "row_wise"}), r"names 'u', and the tables are \['t'\]"),
        (lambda: placed([described("t", 1)], 2, {"t": 1}), "1 says not where it lies"),
        (lambda: placed([described("t", 1)], 2, {"t": ParameterSharding("data_parallel", "dense")}), "'data_parallel'"),
        (lambda: OverlappedEmbeddingBagCollection([], SGD(lr=1)), "no table is given"),
        (lambda: OverlappedEmbeddingBagCollection([BAGS[0], BAGS[0]], SGD(lr=1)), "two tables are named 'wide'"),
        (lambda: OverlappedEmbeddingBagCollection(BAGS, SGD(lr=1), is_weighted=True), "weighted mean"),
        (lambda: SGD(lr=-1.0), "no step length"),
        (lambda: Adam(lr=float("nan")), "lr=nan is no step length"),
        (lambda: Adam(lr=1.0, betas=(0.9, 1.0)), r"\[0, 1\)"),
        (lambda: OverlappedEmbeddingBagCollection(BAGS, SGD(lr=1)).pooled(KeyedJagged(["a"], *empty())), "'b'"),
        (lambda: OverlappedEmbeddingBagCollection(BAGS, SGD(lr=1))({"a": 1}), "is no KeyedJaggedTensor"),
        (lambda: OverlappedTrainPipeline(torch.nn.Linear(1, 1), None), "no OverlappedEmbeddingBagCollection"),
    ],
)
def test_what_cannot_be_built_or_looked_up_says_why(make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def empty() -> tuple[Tensor, Tensor]:
    return torch.empty(0, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)


def test_a_state_of_another_size_or_optimizer_is_refused() -> None:
    bags = OverlappedEmbeddingBagCollection(BAGS, Adagrad(lr=1.0))
    state = bags.state_dict()
    with pytest.raises(ConfigError, match=r"saved as \[2, 6\], and the table wants \[11, 6\]"):
        bags.load_state_dict({**state, "embedding_bags.wide.weight": torch.zeros(2, 6)})
    with pytest.raises(RuntimeError, match="Missing key"):
        bags.load_state_dict({})
    other = OverlappedEmbeddingBagCollection(BAGS, Adam(lr=1.0)).fused_optimizer.state_dict()
    with pytest.raises(ConfigError, match="another optimizer's"):
        bags.fused_optimizer.load_state_dict(other)


def test_features_made_in_the_model_are_refused_as_they_cannot_be_known_ahead() -> None:
    table = Table(name="t", num_embeddings=2, embedding_dim=1, feature_names=("a",))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = OverlappedEmbeddingBagCollection([table], SGD(lr=1.0))

        def forward(self, batch: Tensor) -> Any:
            return self.bags.pooled(KeyedJagged(["a"], batch, torch.tensor([1]))).sum(), None

    net = Net()
    pipeline = OverlappedTrainPipeline(net, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.0))
    with pytest.raises(ConfigError, match="no part of the batch"):
        pipeline.progress(iter([torch.tensor([1])]))
    with pytest.raises(RuntimeError, match="a step has failed before"):
        pipeline.progress(iter([torch.tensor([1])]))
    pipeline.shutdown()
