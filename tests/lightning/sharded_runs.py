"""`resume_runs` with the models of the examples of sharded tables: `python -m tests.lightning.sharded_runs JSON`."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.overlapped_tables.model import OverlappedModel
from examples.torchrec_dmp.strategy import ShardedStrategy
from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from tests.forked_ranks import join_ranks, latest
from tests.lightning.conftest import trainer
from tests.lightning.resume_runs import cut_name, main

TABLES = {"history": 64, "item": 64}
SCHEMA = Schema(
    dense=[DenseFeature(name="row")],
    sparse=[SparseFeature(name=name, num_embeddings=rows) for name, rows in TABLES.items()],
    labels=["click"],
)


class Witness:
    """Beside a model: writes down each trained batch's rows and loss, and kills its process where it is told."""

    def __init__(self, log: Path, cut: tuple[str, int] | None, **options: Any) -> None:
        super().__init__(TABLES, num_dense=1, **options)
        self._log, self._cut = log.open("a"), cut
        self._seen = {"step": 0, "saved": 0, "validation": 0}

    def on_trained(self, loss: torch.Tensor, logits: torch.Tensor, batch: Any) -> None:
        self.may_die("step")
        super().on_trained(loss, logits, batch)
        weights = None if batch.weights is None else batch.weights.tolist()
        line = [self.current_epoch, batch.dense[:, 0].int().tolist(), float(loss), weights]
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.may_die("validation")
        super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.may_die("saved")

    def may_die(self, place: str) -> None:
        self._seen[place] += 1
        if self._cut == (place, self._seen[place]):
            os.kill(os.getpid(), signal.SIGKILL)


class OverlappedWitness(Witness, OverlappedModel):
    pass


def witness(model: str) -> Any:
    """Its class. TorchRec's is imported only for its own runs."""
    if model == "overlapped_tables":
        return OverlappedWitness
    from examples.torchrec_dmp.model import DmpModel

    return type("DmpWitness", (Witness, DmpModel), {})


def run_rank(rank: int, folder: Path, name: str, setup: dict[str, Any], cut: Any, port: int, *, resumes: bool) -> None:
    ranks = setup["ranks"]
    join_ranks(rank, ranks, port)
    torch.manual_seed(0)
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    saved = ModelCheckpoint(dirpath=folder / "saved" / name, save_top_k=-1, filename="{step}", **setup["saves"])
    callbacks: list[Any] = [InTuneCallback(turn_interval_s=0.02), saved]
    widths = {"read": 3, "transform": 2, "prefetch": 5} if resumes else {}
    data = InTuneDataModule(
        SCHEMA, setup["data"], val=setup["data"] + "/part-1.parquet", widths=widths, **setup["settings"]
    )
    run = trainer(
        folder,
        callbacks=callbacks,
        enable_checkpointing=True,
        devices=ranks,
        strategy=ShardedStrategy(),
        **setup["trainer"],
    )
    checkpoint = latest(folder / "saved" / cut_name(name)) if resumes else None
    model = witness(setup["model"])(folder / f"{name}-{rank}.jsonl", cut, **setup["options"])
    run.fit(model, data, ckpt_path=checkpoint, weights_only=False)


if __name__ == "__main__":
    main(run_rank, lambda checkpoint: checkpoint["global_step"])
