"""Balanced training runs, a process per rank: `python -m tests.balance.lightning_runs JSON`.

The JSON has a folder and a list of runs; of each the last line
printed tells, by rank, what every step was trained on, and the model's weights in the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.balance import Balance, mean_loss
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.dedup.jagged import Batch
from tests.forked_ranks import fork_ranks, join_ranks, latest

LIMIT_S = 90
SCHEMA = Schema(
    dense=[DenseFeature(name="row")],
    sparse=[
        SparseFeature(name="history", num_embeddings=64, transform="id"),
        SparseFeature(name="item", num_embeddings=64, transform="id"),
    ],
    labels=["click"],
)


class Witness(pl.LightningModule):
    """Logistic regression on two bags of ids, in float64; writes each step down, and dies where it is told."""

    def __init__(self, log: Path, dies_at: int | None) -> None:
        super().__init__()
        self.history = torch.nn.EmbeddingBag(64, 1, mode="sum").double()
        self.item = torch.nn.EmbeddingBag(64, 1, mode="sum").double()
        self._log, self._dies_at, self._num_steps = log.open("a"), dies_at, 0

    def bag(self, batch: Batch, key: str, table: torch.nn.EmbeddingBag) -> torch.Tensor:
        values, lengths = batch.sparse[key]
        return table(values.long(), torch.cumsum(lengths.long(), 0) - lengths)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self._num_steps += 1
        if self._num_steps == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = self.bag(batch, "history", self.history) + self.bag(batch, "item", self.item)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], batch.labels[:, 0].double(), reduction="none"
        )
        weighs = batch.weights is None or bool(batch.weights.any())
        rows = batch.dense[:, 0].int().tolist() if weighs else []
        scale = None if batch.loss_scale is None else float(batch.loss_scale)
        self._log.write(json.dumps([self.current_epoch, batch_idx, rows, scale]) + "\n")
        self._log.flush()
        return mean_loss(losses, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def run_rank(rank: int, folder: Path, run: dict[str, Any], port: int) -> None:
    ranks = run["ranks"]
    join_ranks(rank, ranks, port)
    torch.manual_seed(0)
    name = run["name"]
    saved = ModelCheckpoint(dirpath=folder / f"saved-{name}", save_top_k=-1, filename="{step}", every_n_train_steps=3)
    data = InTuneDataModule(SCHEMA, run["data"], balance=Balance(**run["balance"]), mix_row_groups=3, **run["settings"])
    # Ranks of other widths take other numbers of batches ahead.
    data.widths = {"read": 1 + rank, "transform": 1 + rank, "prefetch": 2 + 3 * rank}
    logger = TensorBoardLogger(folder, name="board", version=name) if run.get("board") else False
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        default_root_dir=folder,
        logger=logger,
        callbacks=[InTuneCallback(turn_interval_s=0.02), saved],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 2, **run.get("trainer", {})},
    )
    model = Witness(folder / f"{name}-{rank}.jsonl", run.get("dies_at"))
    checkpoint = None if run.get("resumes") is None else latest(folder / f"saved-{run['resumes']}")
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=False)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()
    (folder / f"{name}-{rank}.weights").write_text(json.dumps(weights))


def told(folder: Path, run: dict[str, Any], codes: list[int]) -> dict[str, Any]:
    steps, weights = [], []
    for rank in range(run["ranks"]):
        log, final = folder / f"{run['name']}-{rank}.jsonl", folder / f"{run['name']}-{rank}.weights"
        steps.append([json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [])
        weights.append(json.loads(final.read_text()) if final.exists() else None)
    resumes, done = run.get("resumes"), None
    if resumes is not None:
        saved = latest(folder / f"saved-{resumes}")
        assert saved is not None, "the run that is resumed was to save"
        loops = torch.load(saved, weights_only=False)["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        done = {"total": progress["total"]["processed"], "epoch": progress["current"]["processed"]}
    return {"name": run["name"], "codes": codes, "steps": steps, "weights": weights, "done": done}


def main() -> None:
    warnings.simplefilter("ignore")
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    out: list[dict[str, Any]] = []
    for run in job["runs"]:
        codes = fork_ranks(lambda rank, port, run=run: run_rank(rank, folder, run, port), run["ranks"], limit_s=LIMIT_S)
        out.append(told(folder, run, codes))
    sys.stdout.write("\n" + json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
