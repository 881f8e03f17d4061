"""Train a sequence model on OTTO's sessions: `python -m examples.otto_sessions.train [TRAIN.jsonl]`.

Shows JSON lines of sessions becoming clustered Parquet, and a model whose attention runs over each stored list once.
Takes about fifteen seconds on the sample of 20 sessions.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import final

import lightning.pytorch as lightning
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.otto_sessions.convert import HISTORY, convert
from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup import Batch, DedupSequenceModel, InverseKeyedJaggedTensor

SAMPLE = Path("..") / "shared" / "data" / "otto" / "train.jsonl"
FOLDER = Path(".data") / "otto_sessions"
NUM_ITEMS = 100_000
"""Rows of the one table that history and item share; OTTO has 1.8 million items."""

SCHEMA = Schema(
    dense=[DenseFeature(name="day_share")],
    sparse=[
        SparseFeature(name="history", num_embeddings=NUM_ITEMS),
        SparseFeature(name="item", column="aid", num_embeddings=NUM_ITEMS),
    ],
    labels=["wants"],
)


@final
class WantsModel(lightning.LightningModule):
    """Is this event a cart or an order? From the items before it, and the item itself."""

    def __init__(self, *, base_rate: float, embedding_dim: int = 16, learning_rate: float = 1e-3) -> None:
        super().__init__()
        from torchrec.modules.embedding_configs import EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection

        table = EmbeddingConfig(
            name="item_table",
            embedding_dim=embedding_dim,
            num_embeddings=NUM_ITEMS,
            feature_names=["history", "item"],
        )
        self.model = DedupSequenceModel(
            EmbeddingCollection(tables=[table]),
            history="history",
            target="item",
            num_dense=1,
            max_length=HISTORY,
            num_layers=1,
        )
        self.base_rate, self.learning_rate = base_rate, learning_rate

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, 1]."""
        sparse = batch.sparse
        if isinstance(sparse, InverseKeyedJaggedTensor):
            # A session's histories move on by one item: they lie in one buffer, and each entry is looked up once.
            sparse = sparse.share_shifted()
        return self.model(batch.dense, sparse)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Mean log loss, nats."""
        return binary_cross_entropy_with_logits(self(batch), batch.labels)

    def validation_step(self, batch: Batch, _: int) -> None:
        """The model's log loss beside that of the base rate."""
        base = torch.full_like(batch.labels, self.base_rate).logit()
        self.log("val_loss", binary_cross_entropy_with_logits(self(batch), batch.labels), batch_size=len(batch))
        self.log("val_base", binary_cross_entropy_with_logits(base, batch.labels), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """What `train` leaves behind."""

    tuner: InTuneCallback
    num_steps: int
    val_loss: float
    val_base: float


def train(source: Path, folder: Path, *, max_epochs: int = 5, batch_size: int = 128) -> Run:
    """Convert `source` into `folder` unless that is there, and fit."""
    data_folder = convert(source, folder)
    lightning.seed_everything(0, verbose=False)
    labels = pq.read_table(data_folder / "train", columns=["wants"])["wants"].to_numpy()
    model = WantsModel(base_rate=float(labels.mean().clip(1e-4, 1 - 1e-4)))
    data = InTuneDataModule(
        SCHEMA,
        train=str(data_folder / "train"),
        val=str(data_folder / "val"),
        batch_size=batch_size,
        dedup=[["history"]],
    )
    tuner = InTuneCallback(turn_interval_s=0.25)
    trainer = lightning.Trainer(
        max_epochs=max_epochs,
        callbacks=[tuner],
        accelerator="cpu",
        logger=False,
        default_root_dir=folder.parent,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=data)
    val_loss, val_base = (float(trainer.callback_metrics[name]) for name in ("val_loss", "val_base"))
    return Run(tuner=tuner, num_steps=trainer.global_step, val_loss=val_loss, val_base=val_base)


def main() -> int:
    """Train on the file named on the command line, or on the sample; exits 1 where there is none."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE
    if not source.exists():
        print(f"otto_sessions: there is no file '{source}', so nothing was done. Name a file of the OTTO data.")
        return 0 if source == SAMPLE else 1
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # asked of torch 2.13 by Lightning 2.6
    run = train(source, FOLDER / source.stem)
    print(run.tuner.report())
    print(
        f"{run.num_steps} steps; log loss on the last seven days {run.val_loss:.4f}, the base rate's {run.val_base:.4f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
