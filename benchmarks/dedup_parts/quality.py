"""Whether what is trained on sessions, and on unique rows, ranks as well as what is trained on shuffled rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.dedup_parts.training import Trained, as_it_is
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch, DedupDlrm, DedupPlan, DedupSparse
from lightning_intune.dedup.etl.session_layout import session_bounds
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, table
from lightning_intune.flow.transform import ToBatch

BATCH_ROWS, NUM_IDS, DIM, NUM_DENSE = 1024, 300, 8, 2
USER, HISTORY, ITEM = ["user0", "user1"], ["history0"], ["item0", "item1"]
FEATURES = [*USER, *HISTORY, *ITEM]
PLAN = DedupPlan.of(USER, HISTORY)


def _rows(num_rows: int, seed: int) -> pa.Table:
    features = [
        *(SynthFeature(name=name, change=0.0, num_ids=NUM_IDS) for name in USER),
        *(SynthFeature(name=name, change=0.1, mean_length=8.0, shift=1, num_ids=NUM_IDS) for name in HISTORY),
        *(SynthFeature(name=name, change=1.0, num_ids=NUM_IDS) for name in ITEM),
    ]
    return table(SynthSpec(num_rows=num_rows, seed=seed, features=features, num_dense=NUM_DENSE))


def _schema() -> Schema:
    return Schema(
        dense=[DenseFeature(name=f"dense{i}") for i in range(NUM_DENSE)],
        sparse=[SparseFeature(name=name, num_embeddings=NUM_IDS + 1, transform="id") for name in FEATURES],
        labels=["label"],
    )


def _model(seed: int) -> DedupDlrm:
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    torch.manual_seed(seed)
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=DIM, num_embeddings=NUM_IDS + 1, feature_names=[name])
        for name in FEATURES
    ]
    return DedupDlrm(EmbeddingBagCollection(tables), num_dense=NUM_DENSE, dense_sizes=[16, DIM], over_sizes=[32, 1])


def quality(num_rows: int, num_seeds: int) -> dict[str, Any]:
    """`auc` and `log_loss` per seed, on sessions not trained on, and `auc_by_sessions_mixed`, the knob's table."""
    ways = ("shuffled", "clustered", "dedup")
    figures: dict[str, Any] = {"auc": {way: [] for way in ways}, "log_loss": {way: [] for way in ways}}
    mixed: dict[str, list[float]] = {}
    rows = _rows(num_rows + num_rows // 4, seed=0)
    bounds = session_bounds(rows.column("session"))
    edge = int(bounds[np.searchsorted(bounds, num_rows)])  # no session is in both parts
    train, test = rows.slice(0, edge), rows.slice(edge)
    bounds = bounds[bounds <= edge]
    for seed in range(num_seeds):
        rng = np.random.default_rng(seed)
        by_session = _sessions_shuffled(bounds, rng)
        orders = {"shuffled": rng.permutation(edge), "clustered": by_session, "dedup": by_session}
        for way, order in orders.items():
            auc, loss = _trained(train.take(pa.array(order)), test, seed, dedup=way == "dedup")
            figures["auc"][way].append(auc)
            figures["log_loss"][way].append(loss)
        for batch_rows in (128, 256, 512) if num_seeds > 2 else (256,):
            auc, _ = _trained(train.take(pa.array(by_session)), test, seed, dedup=True, batch_rows=batch_rows)
            shuffled, _ = _trained(train.take(pa.array(orders["shuffled"])), test, seed, batch_rows=batch_rows)
            mixed.setdefault(f"{batch_rows}", []).append(auc - shuffled)
        mixed.setdefault(f"{BATCH_ROWS}", []).append(figures["auc"]["dedup"][-1] - figures["auc"]["shuffled"][-1])
    return figures | {"auc_minus_shuffled_by_batch_rows": mixed}


def _sessions_shuffled(bounds: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    spans = [np.arange(begin, end) for begin, end in pairwise(bounds.tolist())]
    return np.concatenate([spans[place] for place in rng.permutation(len(spans))])


def _trained(
    train: pa.Table, test: pa.Table, seed: int, *, dedup: bool = False, batch_rows: int = BATCH_ROWS
) -> tuple[float, float]:
    schema = _schema()
    to_batch = ToBatch(schema, sparse=DedupSparse(schema.sparse, PLAN)) if dedup else ToBatch(schema)
    model = _model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005 * (batch_rows / BATCH_ROWS) ** 0.5)
    trained = Trained(model, as_it_is, optimizer)
    for begin in range(0, train.num_rows - batch_rows + 1, batch_rows):
        batch = to_batch(train.slice(begin, batch_rows))
        trained.step(batch.dense, batch.sparse, batch.labels)
    with torch.no_grad():
        whole: Batch = ToBatch(schema)(test)
        logits = model(whole.dense, whole.sparse).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, whole.labels.squeeze(1))
    return auc(logits.numpy(), whole.labels.squeeze(1).numpy()), float(loss)


def auc(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> float:
    """Chance that a positive scores above a negative, ties counting half.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8], np.float32), np.array([0, 1, 0, 1], np.float32))
    0.875
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive = labels > 0
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
