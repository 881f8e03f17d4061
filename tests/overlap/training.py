"""A small model with two collections, its batches, and the same trained by plain torch in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lightning_intune.dedup import KeyedJagged
from lightning_intune.overlap import (
    SGD,
    Adagrad,
    Adam,
    OverlappedEmbeddingBagCollection,
    OverlappedTrainPipeline,
    Placement,
    RowOptimizer,
    Table,
)
from tests.overlap.ranks import Rank

TABLES = [
    Table(name="items", num_embeddings=41, embedding_dim=4, feature_names=("history", "item")),
    Table(name="users", num_embeddings=30, embedding_dim=4, feature_names=("user",), pooling="mean"),
    Table(name="tags", num_embeddings=3, embedding_dim=2, feature_names=("item",)),
]
LATER = [Table(name="places", num_embeddings=17, embedding_dim=3, feature_names=("place",))]
NUM_IDS = {"history": 41, "item": 3, "user": 30, "place": 17}
OPTIMIZERS: dict[str, RowOptimizer] = {
    "sgd": SGD(lr=0.5),
    "adagrad": Adagrad(lr=0.1),
    "row_wise": Adagrad(lr=0.1, row_wise=True),
    "adam": Adam(lr=0.01),
}


STATE_KEYS = {
    "sgd": {},
    "adagrad": {"momentum1": "sum"},
    "row_wise": {"momentum1": "sums"},
    "adam": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
}
"""What ours keep, and what torch calls it."""
Sharding = Mapping[str, Any]
ROW_WISE: Sharding = {}
MIXED: Sharding = {"users": "table_wise", "tags": "table_wise", "places": "table_wise"}
"""Of both collections: one stack of both kinds, and two of a table that lies whole."""


def placements(world_size: int) -> st.SearchStrategy[Any]:
    """By rows, whole, or whole on a rank."""
    ranks = st.integers(0, world_size - 1)
    chosen = st.builds(Placement, sharding=st.just("table_wise"), rank=ranks)
    return st.one_of(st.sampled_from(["row_wise", "table_wise"]), chosen)


def part(sharding: Sharding, tables: list[Table]) -> Sharding:
    """What it says of these tables."""
    return {table.name: sharding[table.name] for table in tables if table.name in sharding}


@dataclass(frozen=True)
class Sample:
    """A batch; features of two collections."""

    sparse: KeyedJagged
    later: dict[str, KeyedJagged]
    labels: Tensor


def sample(rng: torch.Generator, num_rows: int, *, overlap: float, step: int, dtype: torch.dtype) -> Sample:
    """`overlap` of the ids are Zipf over all rows; the others come from half of them by turns, so that they never
    meet the next batch's."""

    def ids(count: int, num: int) -> Tensor:
        zipf = (num ** torch.rand(count, generator=rng)).long().clamp(max=num) - 1
        half = max(1, num // 2)
        apart = torch.randint(half, (count,), generator=rng) + (step % 2) * (num - half)
        return torch.where(torch.rand(count, generator=rng) < overlap, zipf, apart)

    def jagged(keys: list[str]) -> KeyedJagged:
        lengths = torch.randint(4, (len(keys) * num_rows,), generator=rng)
        if step % 7 == 3:
            lengths[:num_rows] = 0  # the first feature is empty
        counts = lengths.view(len(keys), num_rows).sum(dim=1).tolist()
        values = [ids(count, NUM_IDS[key]) for key, count in zip(keys, counts, strict=True)]
        return KeyedJagged(keys, torch.cat(values), lengths.int())

    labels = torch.rand(num_rows, 1, generator=rng, dtype=dtype)
    return Sample(jagged(["history", "item", "user"]), {"later": jagged(["place"])}, labels)


def samples(rank: int, num_steps: int, *, overlap: float, dtype: torch.dtype, seed: int = 0) -> list[Sample]:
    """Of one rank; sizes differ by rank and step, and some are of no row."""
    rng = torch.Generator().manual_seed(1000 * seed + rank)
    sizes = torch.randint(0, 7, (num_steps,), generator=rng).tolist()
    return [sample(rng, size, overlap=overlap, step=step, dtype=dtype) for step, size in enumerate(sizes)]


def dealt(batches: list[list[Sample]], rank: int, world_size: int) -> list[Sample]:
    """What a rank of another number of them is given of the batches of all ranks: every row once, to somebody."""
    out: list[Sample] = []
    for step in zip(*batches, strict=True):
        nothing = sample(torch.Generator(), 0, overlap=1.0, step=0, dtype=step[0].labels.dtype)
        given = [nothing, *step[rank::world_size]]
        sparse, later = merged([one.sparse for one in given]), merged([one.later["later"] for one in given])
        out.append(Sample(sparse, {"later": later}, torch.cat([one.labels for one in given])))
    return out


def merged(parts: list[KeyedJagged]) -> KeyedJagged:
    """One batch of all their rows."""
    keys = parts[0].keys()
    found = [part[key] for key in keys for part in parts]
    return KeyedJagged(keys, torch.cat([values for values, _ in found]), torch.cat([lengths for _, lengths in found]))


class Dense(nn.Module):
    """What follows the embeddings."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(14, 6, dtype=dtype)
        self.last = nn.Linear(6 + 3, 1, dtype=dtype)
        rng = torch.Generator().manual_seed(5)  # ranks that are threads share torch's
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=rng)

    def forward(self, pooled: Tensor, place: Tensor) -> Tensor:
        return self.last(torch.cat([torch.tanh(self.first(pooled)), place], dim=1))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


class Model(nn.Module):
    """`later` stands first, and is used last. Its loss is a sum over rows, of which ranks take the mean; so that other
    numbers of ranks train alike, `scale` may make up for that."""

    scale = 1.0

    def __init__(self, rank: Rank, optimizer: RowOptimizer, dtype: torch.dtype, sharding: Sharding) -> None:
        super().__init__()
        self.later, self.bags = (
            OverlappedEmbeddingBagCollection(
                tables, optimizer, sharding=part(sharding, tables), transport=rank.transport, dtype=dtype
            )
            for tables in (LATER, TABLES)
        )
        self.dense = Dense(dtype)
        whole = whole_tables(dtype)
        for one, tables in ((self.bags, TABLES), (self.later, LATER)):
            keys = [f"embedding_bags.{table.name}.weight" for table in tables]
            one.load_state_dict({key: whole[key] for key in keys})

    def forward(self, batch: Sample) -> tuple[Tensor, Tensor]:
        pooled = self.bags.pooled(batch.sparse)
        loss = loss_of(self.dense(pooled, self.later.pooled(batch.later["later"])), batch.labels)
        return loss * self.scale, loss.detach()


class MeanSGD(torch.optim.SGD):
    """Its gradients averaged over the ranks, as DDP would."""

    def __init__(self, parameters: Any, rank: Rank) -> None:
        super().__init__(parameters, lr=0.1)
        self._rank = rank

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = self._rank.mean(parameter.grad)
        super().step()


def whole_tables(dtype: torch.dtype) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {
        f"embedding_bags.{table.name}.weight": torch.randn(
            table.num_embeddings, table.embedding_dim, generator=rng, dtype=dtype
        )
        for table in [*TABLES, *LATER]
    }


def state_of(model: Model) -> dict[str, Tensor]:
    """This rank's part: tables, optimizer state, dense parameters; without device meshes, which threads cannot have."""
    out = {f"dense.{name}": value.detach().clone() for name, value in model.dense.named_parameters()}
    for name, one in (("bags", model.bags), ("later", model.later)):
        one.settle()
        for shard in one.shards:
            for key, values in {"weight": shard.weights, **shard.state}.items():
                for table, owned in zip(shard.stack.tables, shard.parts(values), strict=True):
                    out[f"{name}.{table.name}.{key}"] = owned.clone()
    return out


def train(
    rank: Rank, batches: list[Sample], optimizer: RowOptimizer, *, overlap: bool, dtype: torch.dtype, sharding: Sharding
) -> tuple[list[float], dict[str, Tensor], list[str]]:
    """Losses, the state at the end, and the order of first use."""
    model = Model(rank, optimizer, dtype, sharding)
    pipeline = OverlappedTrainPipeline(model, MeanSGD(model.dense.parameters(), rank), overlap=overlap)
    losses: list[float] = []
    iterator: Iterator[Sample] = iter(batches)
    while True:
        try:
            losses.append(float(pipeline.progress(iterator).detach()))
        except StopIteration:
            break
    state = state_of(model)
    order = pipeline.order
    assert pipeline.shutdown()
    return losses, state, order


class RowWiseAdagrad(torch.optim.Optimizer):
    """From its definition: one sum per row, of the mean square."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        for weight in self.param_groups[0]["params"]:
            self.state[weight]["sums"] = weight.new_zeros(len(weight), 1)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    sums = self.state[weight]["sums"]
                    sums += weight.grad.square().mean(dim=1, keepdim=True)
                    weight -= group["lr"] * weight.grad / (sums.sqrt() + 1e-10)


def alone(
    all_batches: list[list[Sample]], name: str, dtype: torch.dtype
) -> tuple[list[list[float]], dict[str, Tensor]]:
    """The same training without ranks: `nn.EmbeddingBag` and torch's optimizers. Losses by rank and step; the state."""
    is_sparse = name == "adam"
    bags = {
        table.name: nn.EmbeddingBag(
            table.num_embeddings, table.embedding_dim, mode=table.pooling, sparse=is_sparse, include_last_offset=True
        ).to(dtype)
        for table in [*TABLES, *LATER]
    }
    for table_name, bag in bags.items():
        bag.load_state_dict({"weight": whole_tables(dtype)[f"embedding_bags.{table_name}.weight"]})
    weights = [bag.weight for bag in bags.values()]
    sparse: Any = {
        "sgd": lambda: torch.optim.SGD(weights, lr=0.5),
        "adagrad": lambda: torch.optim.Adagrad(weights, lr=0.1),
        "row_wise": lambda: RowWiseAdagrad(weights, lr=0.1),
        "adam": lambda: torch.optim.SparseAdam(weights, lr=0.01),
    }[name]()
    dense = Dense(dtype)
    dense_optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    losses: list[list[float]] = [[] for _ in all_batches]

    def columns(tables: list[Table], jagged: KeyedJagged) -> Tensor:
        parts: list[Tensor] = []
        for table in tables:
            for feature in table.feature_names:
                values, lengths = jagged[feature]
                offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(lengths.long(), 0)])
                parts.append(bags[table.name](values, offsets))
        return torch.cat(parts, dim=1)

    for step in zip(*all_batches, strict=True):
        sparse.zero_grad()
        dense_optimizer.zero_grad()
        total = torch.zeros((), dtype=dtype)
        for rank, batch in enumerate(step):
            logits = dense(columns(TABLES, batch.sparse), columns(LATER, batch.later["later"]))
            loss = loss_of(logits, batch.labels)
            losses[rank].append(float(loss.detach()))
            total = total + loss / len(step)
        total.backward()
        sparse.step()
        dense_optimizer.step()
    state = {f"{name}.weight": bag.weight.detach() for name, bag in bags.items()}
    for table_name, bag in bags.items():
        for ours, theirs in STATE_KEYS[name].items():
            kept = sparse.state[bag.weight].get(theirs, torch.zeros_like(bag.weight))  # Adam's comes with a gradient
            state[f"{table_name}.{ours}"] = kept.squeeze(1) if name == "row_wise" else kept
    return losses, state
