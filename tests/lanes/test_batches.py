"""Parquet rows to model batches, read and made in worker processes: the very batches of a plain loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch, DedupPlan, DedupSparse, InverseKeyedJaggedTensor
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource, ParquetSource, PinMemory, Rebatch
from lightning_intune.flow.pin import Pin
from lightning_intune.flow.transform import ToBatch
from tests.flow.graphs import resize_storm

SCHEMA = Schema(
    dense=[DenseFeature(name="price", default=1.5), DenseFeature(name="clicks", transform="log1p")],
    sparse=[
        SparseFeature(name="item", num_embeddings=1000),
        SparseFeature(name="words", num_embeddings=100),
        SparseFeature(name="age", num_embeddings=5, transform="bucket", boundaries=[20.0, 40.0]),
    ],
    labels=["click"],
    weight="weight",
)
NUM_ROWS, ROWS_PER_GROUP = 4000, 500


def rows(num_rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    words = [[f"w{word}" for word in rng.integers(0, 40, rng.integers(0, 5))] for _ in range(num_rows)]
    return pa.table({
        "price": pa.array(rng.normal(size=num_rows), mask=rng.random(num_rows) < 0.1),
        "clicks": rng.integers(0, 100, num_rows),
        "item": pa.array(rng.integers(0, 10**6, num_rows), mask=rng.random(num_rows) < 0.1),
        "words": pa.array(words, pa.list_(pa.string())),
        "age": rng.uniform(0, 90, num_rows),
        "click": rng.integers(0, 2, num_rows),
        "weight": rng.random(num_rows),
    })  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(rows(NUM_ROWS), path, row_group_size=ROWS_PER_GROUP)
    return path


def graph(path: Path, method: Any, *, width: int = 2, to_batch: ToBatch | None = None, **options: Any) -> Any:
    """Batches of 300: reading and making them are stages on `method`'s lanes, re-cutting the rows between is not."""
    source = ParquetSource([str(path)], shuffle=True, seed=3)
    tables = ElasticMapper(source, source.reader(), width, method=method, name="read", **options)
    return ElasticMapper(
        Rebatch(tables, 300), to_batch or ToBatch(SCHEMA), width, method=method, name="to_batch", **options
    )


def tensors(batch: Batch) -> Iterator[torch.Tensor]:
    assert batch.weights is not None
    yield from (batch.dense, batch.labels, batch.weights)
    for key in batch.sparse.keys():  # noqa: SIM118 - no mapping
        values, lengths = batch.sparse[key]
        yield from (values, lengths)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [len(batch) for batch in ours] == [len(batch) for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))


@pytest.fixture(scope="module")
def expected(path: Path) -> list[Batch]:
    batches = list(graph(path, "thread", width=0))
    assert sum(map(len, batches)) == NUM_ROWS
    return batches


def test_batches_made_in_processes_are_those_made_here_and_do_not_change_while_they_are_kept(
    path: Path, expected: list[Batch]
) -> None:
    kept = [batch for _ in range(3) for batch in graph(path, "process")]
    assert_same(kept, expected * 3)


@settings(max_examples=4)
@given(cut=st.integers(0, 14), seed=st.integers(0, 99))
def test_batches_are_the_same_over_resizes_and_a_resume_on_other_lanes(
    path: Path, expected: list[Batch], cut: int, seed: int
) -> None:
    first = graph(path, "process", max_workers=3)
    with resize_storm(first, seed):
        head = list(islice(first, cut))
    state = first.state_dict()
    first.shutdown()
    second = graph(path, "thread")
    second.reset(state)
    assert_same(head + list(second), expected)


def test_killed_workers_cost_no_batch(path: Path, expected: list[Batch]) -> None:
    out: list[Batch] = []
    for batch in graph(path, "process"):
        out.append(batch)
        if len(out) % 4 == 3:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have gone since it was listed
                workers = [process for process in psutil.Process().children(recursive=True) if not process.children()]
                workers[0].kill()  # one: an item that has lost three is given up
    assert_same(out, expected)


def test_batches_that_store_repeated_rows_once_cross_as_they_are(path: Path, expected: list[Batch]) -> None:
    to_batch = ToBatch(SCHEMA, sparse=DedupSparse(SCHEMA.sparse, DedupPlan.of(["item", "words"]), engine="arrow"))
    batches = list(graph(path, "process", to_batch=to_batch))
    assert all(isinstance(batch.sparse, InverseKeyedJaggedTensor) for batch in batches)
    assert_same(batches, expected)


def test_a_bad_label_is_told_with_its_stage_and_batch_and_what_came_before_is_delivered() -> None:
    table = rows(900).set_column(5, "click", pa.array([0.0] * 700 + [None] + [1.0] * 199))
    tables = IterableSource([table.slice(start, 300) for start in range(0, 900, 300)])
    out: list[Batch] = []
    with pytest.raises(ValueError, match=r"stage 'to_batch': item 2 failed with ValueError: .*click"):
        out.extend(ElasticMapper(tables, ToBatch(SCHEMA), 2, method="process", name="to_batch"))
    assert [len(batch) for batch in out] == [300, 300]


def test_the_rows_of_a_slice_cross_without_those_around_it() -> None:
    table = rows(3000)
    stage = ElasticMapper(IterableSource([table.slice(7, 5)]), arrow_bytes, 1, method="process")
    (num_bytes,) = stage
    assert num_bytes < table.get_total_buffer_size() / 50


def arrow_bytes(table: pa.Table) -> int:
    return table.get_total_buffer_size()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what happens without an accelerator")
def test_where_there_is_no_accelerator_pinning_passes_the_batches_of_a_process_on(
    path: Path, expected: list[Batch]
) -> None:
    stage = graph(path, "process")
    with ElasticLoader(PinMemory(stage)) as loader:
        assert_same(list(loader), expected)
    pinned_there = ElasticMapper(graph(path, "thread"), Pin(), 1, method="process", name="pin")
    assert_same(list(pinned_there), expected)
