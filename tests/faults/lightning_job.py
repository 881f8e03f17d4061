"""A run of Lightning's Trainer to be killed: `python -m tests.faults.lightning_job FOLDER NUM_ITEMS`.

Run again, it resumes. What the model was trained on is in its checkpoints, so the last one's list is
what the weights have seen.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_intune import InTuneCallback
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource, Shuffle


def work(n: int) -> list[torch.Tensor]:
    time.sleep(0.001)
    return [torch.tensor([n])]


class Recorder(pl.LightningModule):
    """Remembers each item, in its checkpoints too."""

    def __init__(self, started: Path) -> None:
        super().__init__()
        self.layer, self.trained, self._started = torch.nn.Linear(1, 1), list[int](), started

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.trained.append(int(batch[0]))
        if batch_idx == 10:
            self._started.write_text(str(os.getpid()))
        return self.layer(batch[0].float()).sum() * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained"] = list(self.trained)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained = list(checkpoint["trained"])


def main(folder: Path, num_items: int) -> None:
    """Train from the last checkpoint on, if there is one, and write down all items at the end."""
    warnings.filterwarnings("ignore", message=".*(does not have many workers|resuming from a checkpoint).*")
    node = ElasticMapper(IterableSource(range(num_items)), work, 2, method="process", max_workers=3, name="work")
    node = ElasticPrefetcher(Shuffle(node, 32, seed=3), 4)
    saved = ModelCheckpoint(dirpath=folder / "saved", filename="{step}", every_n_train_steps=5, save_top_k=-1)
    model = Recorder(folder / "started")
    run = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, callbacks=[saved, InTuneCallback(turn_interval_s=0.05)],
    )  # fmt: skip
    run.fit(model, ElasticLoader(node), ckpt_path=newest(folder), weights_only=True)
    if run.interrupted:  # Lightning may return after a signal
        sys.exit(1)
    (folder / "trained.json").write_text(json.dumps(model.trained))


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step."""
    return max((folder / "saved").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]), default=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
