"""A small Parquet data set, and a model that remembers what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup.jagged import Batch

NUM_ROWS = 6_000

collect_ignore = ["dmp_runs.py"]  # a script that needs TorchRec, and no module with examples


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    rng = np.random.default_rng(0)
    for part in range(2):
        rows = np.arange(part * NUM_ROWS // 2, (part + 1) * NUM_ROWS // 2)
        table = pa.table(
            {
                "row": rows.astype(np.float32),
                "item": rng.integers(0, 50, len(rows)).astype(str),
                "click": (rng.random(len(rows)) < 0.3).astype(np.int8),
            }
        )
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=500)
    return folder


@pytest.fixture
def schema() -> Schema:
    return Schema(
        dense=[DenseFeature(name="row")],
        sparse=[SparseFeature(name="item", num_embeddings=64)],
        labels=["click"],
    )


class Clicks(pl.LightningModule):
    """Logistic regression on a bag of items; `rows` lists the row numbers of every trained batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.EmbeddingBag(64, 1, mode="sum")
        self.rows: list[list[int]] = []
        self.losses: list[float] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        logit = self.bias(batch.sparse.values(), batch.sparse.offsets()[:-1])
        return torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.labels)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.rows.append(batch.dense[:, 0].int().tolist())
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Clicks):
    """The same, with a validation loss."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch))


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "default_root_dir": folder,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            **options,
        }
    )
