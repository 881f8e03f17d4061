"""Whether what is trained on sessions, and on unique rows, ranks as well as what is trained on shuffled rows.

And what the knob that mixes sessions does to both: `mix_row_groups` of `InTuneDataModule`, by the node behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from lightning_intune.flow import IterableSource
from lightning_intune.flow.batch import Rebatch
from lightning_intune.flow.row_shuffle import RowShuffle
from lightning_intune.flow.transform import ToBatch

BATCH_ROWS, PASSES, NUM_IDS, DIM, NUM_DENSE = 256, 3, 300, 8, 2
USER, HISTORY, ITEM = ["user0", "user1"], ["history0"], ["item0", "item1"]
FEATURES = [*USER, *HISTORY, *ITEM]
PLAN = DedupPlan.of(USER, HISTORY)
GROUP_ROWS, MIXES = 1024, (1, 8, 32)
"""Rows of a row group, of which an epoch draws a new order; and from how many at once a batch takes its rows."""


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
    """`auc` and `log_loss` per seed after three passes, on sessions not trained on; `auc_by_pass` per pass and seed.

    A pass draws a new order. After few steps sessions are behind, as a batch of them holds fewer users. `mix` has for
    each value of the knob the same two, deduplicated, the sessions in a batch and the factor that is left.
    """
    ways = ("shuffled", "clustered", "dedup")
    rows = _rows(num_rows + num_rows // 4, seed=0)
    bounds = session_bounds(rows.column("session"))
    edge = int(bounds[np.searchsorted(bounds, num_rows)])  # no session is in both parts
    train, test = rows.slice(0, edge), rows.slice(edge)
    bounds = bounds[bounds <= edge]
    found: dict[str, list[list[tuple[float, float]]]] = {way: [] for way in ways}
    for seed in range(num_seeds):
        rng = np.random.default_rng(seed)
        by_row = [rng.permutation(edge) for _ in range(PASSES)]
        by_session = [_sessions_shuffled(bounds, rng) for _ in range(PASSES)]
        for way in ways:
            orders = by_row if way == "shuffled" else by_session
            passes = [_batches(train, order) for order in orders]
            found[way].append(_trained(passes, test, seed, dedup=way == "dedup"))
    return {
        "mix": {str(mix): _mixed(train, test, mix, num_seeds) for mix in MIXES},
        "auc": {way: [passes[-1][0] for passes in found[way]] for way in ways},
        "log_loss": {way: [passes[-1][1] for passes in found[way]] for way in ways},
        "auc_by_pass": {way: [[auc for auc, _ in passes] for passes in found[way]] for way in ways},
    }


def _sessions_shuffled(bounds: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    spans = [np.arange(begin, end) for begin, end in pairwise(bounds.tolist())]
    return np.concatenate([spans[place] for place in rng.permutation(len(spans))])


def _mixed(train: pa.Table, test: pa.Table, mix: int, num_seeds: int) -> dict[str, Any]:
    """What becomes of training where a batch draws its rows from `mix` row groups at once."""
    finals = [
        _trained([_mixed_batches(train, mix, seed, one) for one in range(PASSES)], test, seed, dedup=True)[-1]
        for seed in range(num_seeds)
    ]
    sparse = DedupSparse(_schema().sparse, PLAN)
    first = list(_mixed_batches(train, mix, 0, 0))
    num_stored = sum(len(sparse.parts(rows)[0].lengths) // len(USER) for rows in first)
    return {
        "auc": [auc for auc, _ in finals],
        "log_loss": [loss for _, loss in finals],
        "sessions_per_batch": float(np.mean([len(rows.column("session").unique()) for rows in first])),
        "user_factor": sum(map(len, first)) / num_stored,
    }


def _mixed_batches(train: pa.Table, mix: int, seed: int, number: int) -> Iterator[pa.Table]:
    """The batches of one pass, as the DataModule's graph cuts them: row groups in a new order, rows side by side."""
    starts = np.random.default_rng([seed, number]).permutation(np.arange(0, train.num_rows, GROUP_ROWS))
    groups = IterableSource([train.slice(begin, GROUP_ROWS) for begin in starts.tolist()])
    if mix == 1:
        return iter(Rebatch(groups, BATCH_ROWS, drop_last=True))
    return iter(RowShuffle(groups, BATCH_ROWS, num_tables=mix, seed=seed * PASSES + number, drop_last=True))


def _batches(train: pa.Table, order: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    rows = train.take(pa.array(order))
    return (rows.slice(begin, BATCH_ROWS) for begin in range(0, rows.num_rows - BATCH_ROWS + 1, BATCH_ROWS))


def _trained(passes: list[Iterator[pa.Table]], test: pa.Table, seed: int, *, dedup: bool) -> list[tuple[float, float]]:
    """AUC and log loss on `test` after each of the passes."""
    schema = _schema()
    to_batch = ToBatch(schema, sparse=DedupSparse(schema.sparse, PLAN)) if dedup else ToBatch(schema)
    whole: Batch = ToBatch(schema)(test)
    model = _model(seed)
    trained = Trained(model, as_it_is, torch.optim.Adam(model.parameters(), lr=0.005))
    found: list[tuple[float, float]] = []
    for tables in passes:
        for rows in tables:
            batch = to_batch(rows)
            trained.step(batch.dense, batch.sparse, batch.labels)
        with torch.no_grad():
            logits, labels = model(whole.dense, whole.sparse).squeeze(1), whole.labels.squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        found.append((auc(logits.numpy(), labels.numpy()), float(loss)))
    return found


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
