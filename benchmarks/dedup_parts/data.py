"""Session data for the benchmark: OTTO's session lengths, user lists that stay, histories that move on, items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import DedupPlan, plan_for
from lightning_intune.dedup.etl.output_file import dictionary_columns
from lightning_intune.dedup.etl.session_layout import fold_sessions, session_bounds
from lightning_intune.dedup.etl.synth import SynthFeature, SynthSpec, table

NUM_IDS = 10_000
TABLE_ROWS = 10_001
SEQUENCE_LENGTH = 20.0
MAX_VALUES = 16
USER = [f"user{i}" for i in range(32)]
TEXT = USER[24:]  # stored as words, as logs store categories and queries
HISTORY = [f"history{i}" for i in range(4)]
ITEM = [f"item{i}" for i in range(4)]
FEATURES = [*USER, *HISTORY, *ITEM]
SESSION_LEVEL = ("session", *USER)
NUM_DENSE = 4
BATCH_ROWS = 4096
SMALL_GROUP_ROWS, FAST_GROUP_ROWS, LEAST_GROUP_ROWS = 65_536, 8_192, 1_024
PAIRS = [f"{name}_pairs" for name in (*USER, *HISTORY)]


def spec(num_rows: int, session_mean: float) -> SynthSpec:
    """32 user lists fixed for a session (8 of words), 4 lists that take a new id in a tenth of its rows, 4 items."""
    users = [SynthFeature(name=name, change=0.0, mean_length=SEQUENCE_LENGTH, num_ids=NUM_IDS) for name in USER]
    histories = [
        SynthFeature(name=name, change=0.1, mean_length=SEQUENCE_LENGTH, shift=1, num_ids=NUM_IDS) for name in HISTORY
    ]
    items = [SynthFeature(name=name, change=1.0, num_ids=NUM_IDS) for name in ITEM]
    return SynthSpec(
        num_rows=num_rows,
        events_per_session=session_mean,
        features=[*users, *histories, *items],
        num_dense=NUM_DENSE,
    )


def schema(*, hash_only: bool = True) -> Schema:
    """Every list and item hashed, dense columns as log1p. Else what DLRM pipelines do, to all features alike.

    That is RecD's and TorchArrow's FirstX (the first 16 values of every list), a hash, a clamp and log1p for dense
    columns, and one derived feature for each list: its pairs of neighbours, hashed.
    """
    cut, lists = None if hash_only else MAX_VALUES, (*USER, *HISTORY)
    sparse = [
        SparseFeature(name=name, num_embeddings=TABLE_ROWS, max_values=cut if name in lists else None)
        for name in FEATURES
    ]
    if not hash_only:
        sparse += [
            SparseFeature(name=name, column=column, num_embeddings=TABLE_ROWS, max_values=cut, ngram=2)
            for name, column in zip(PAIRS, lists, strict=True)
        ]
    clamp = None if hash_only else (0.0, 1e6)
    dense = [DenseFeature(name=f"dense{i}", transform="log1p", clamp=clamp) for i in range(NUM_DENSE)]
    return Schema(dense=dense, sparse=sparse, labels=["label"])


def write(folder: Path, num_rows: int, session_mean: float, *, small: bool) -> tuple[dict[str, Path], dict[str, Path]]:
    """The same rows three ways: shuffled, clustered by session, one row a session; smallest files, and fastest.

    zstd-3. A dictionary makes lists of ids larger where rows stand by session and smaller where they do not, and all of
    them faster to read: every column of each layout gets what is smallest, then all get dictionaries. Row groups of
    8192 rows (and 1024 sessions) are read fastest in each layout (tried: 4096 to 65536, 256 to 4096; the memory of
    larger ones leaves the cache, and goes back to the system). Without `small` the first are left out.
    """
    clustered = _with_texts(table(spec(num_rows, session_mean)))
    shuffled = np.random.default_rng(0).permutation(num_rows)
    rows = {
        "shuffled": clustered.take(pa.array(shuffled)),
        "clustered": clustered,
        "sessions": fold_sessions(clustered, session_bounds(clustered.column("session")), SESSION_LEVEL),
    }
    of_sessions = max(LEAST_GROUP_ROWS, round(FAST_GROUP_ROWS / session_mean))
    groups = dict.fromkeys(rows, FAST_GROUP_ROWS) | {"sessions": of_sessions}
    fast = {
        name: _written(made, folder / f"{name}.fast", dictionary=True, group_rows=groups[name])
        for name, made in rows.items()
    }
    if not small:
        return {}, fast
    return {
        name: _written(made, folder / name, dictionary=dictionary_columns(made[:20_000]), group_rows=SMALL_GROUP_ROWS)
        for name, made in rows.items()
    }, fast


def _with_texts(rows: pa.Table) -> pa.Table:
    words = pa.array([f"word{number}" for number in range(NUM_IDS)])
    for name in TEXT:
        lists = rows.column(name).combine_chunks()
        texts = pa.ListArray.from_arrays(lists.offsets, words.take(lists.values))
        rows = rows.set_column(rows.column_names.index(name), name, texts)
    return rows


def _written(rows: pa.Table, path: Path, *, dictionary: bool | list[str], group_rows: int) -> Path:
    options = {"compression": "zstd", "compression_level": 3, "row_group_size": group_rows}
    pq.write_table(rows, path, use_dictionary=dictionary, **options)
    return path


def plan(rows: pa.Table, names: Sequence[str] = FEATURES, session_column: str | None = "session") -> DedupPlan:
    """What `plan_for` chooses from a sample, as a user would."""
    return plan_for(rows.slice(0, 20_000), names, session_column=session_column)


def with_pairs(plan: DedupPlan) -> DedupPlan:
    """The plan with each list's pairs in its group: they repeat where it does."""
    named = set(PAIRS)
    return DedupPlan.of(*([*group, *(f"{n}_pairs" for n in group if f"{n}_pairs" in named)] for group in plan.names))
