"""One Trainer over one engine, in a process of its own: `python -m benchmarks.train_parts.child JSON`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc

from benchmarks.peers_parts.child import tree_cpu_s
from benchmarks.train_parts.data import VALIDATION_BATCHES, MakeBatch, make_batch, order_of
from benchmarks.train_parts.model import Clicks
from lightning_intune import InTuneCallback
from lightning_intune.dedup import Batch
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource

_NEXT = "[_TrainingEpochLoop].train_dataloader_next"
_NUM_STEPS = 1 << 16


@final
class Waits(Profiler):
    """Counts the seconds that Lightning's loop waits for its next batch; the same for any loader."""

    def __init__(self) -> None:
        super().__init__()
        self.wait_s, self._began_s = 0.0, 0.0

    def start(self, action_name: str) -> None:
        """Lightning's hook."""
        if action_name == _NEXT:
            self._began_s = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Lightning's hook."""
        if action_name == _NEXT:
            self.wait_s += time.perf_counter() - self._began_s


@final
class Stopwatch(Callback):
    """AUC after `auc_steps` steps; then `warm_up_s` of training, then `seconds` that count, then the end."""

    def __init__(self, waits: Waits, validation: list[Batch], job: dict[str, Any]) -> None:
        self._waits, self._validation, self._job = waits, validation, job
        self._auc, self._loss = 0.0, 0.0
        self._evaluated_s = self._opened_s = 0.0
        self._before: tuple[int, float, float] = (0, 0.0, 0.0)
        self._samples = 0
        self.found: dict[str, Any] = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's
        batch: Batch,
        batch_idx: int,  # noqa: ARG002 - Lightning's
    ) -> None:
        """Lightning's hook."""
        self._samples += len(batch)
        if trainer.global_step < self._job["auc_steps"]:
            return
        if self._evaluated_s == 0.0:
            self._auc = auc(pl_module, self._validation)
            self._evaluated_s = time.perf_counter()
            return
        now_s = time.perf_counter()
        if self._opened_s == 0.0:
            if now_s - self._evaluated_s >= self._job["warm_up_s"]:
                self._opened_s, self._before = now_s, (self._samples, self._waits.wait_s, tree_cpu_s())
        elif now_s - self._opened_s >= self._job["seconds"]:
            self._close(now_s - self._opened_s)
            trainer.should_stop = True

    def _close(self, elapsed_s: float) -> None:
        samples, wait_s, cpu_s = self._before
        count = self._samples - samples
        self.found = {
            "samples_per_s": count / elapsed_s,
            "data_wait_share": (self._waits.wait_s - wait_s) / elapsed_s,
            "cpu_s": (tree_cpu_s() - cpu_s) / count * 1e6,
            "auc": self._auc,
        }


@torch.no_grad()
def auc(model: LightningModule, validation: list[Batch]) -> float:
    """On batches that are not trained on."""
    model.eval()
    logits = torch.cat([model(batch.to(model.device))[:, 0] for batch in validation])
    labels = torch.cat([batch.labels.to(model.device)[:, 0] for batch in validation])
    model.train()
    return float(binary_auroc(logits, labels.long()))


@final
class MapStyle(Dataset[Batch]):
    """Whole batches by number, in the run's order."""

    def __init__(self, make: MakeBatch, order: list[int]) -> None:
        self._make, self._order = make, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Batch:
        return self._make(self._order[index])


@contextmanager
def loader_of(job: dict[str, Any]) -> Iterator[tuple[Any, list[Callback]]]:
    """The engine's loader, and what the Trainer needs beside it."""
    folder = Path(job["folder"])
    layout = "rows" if job["engine"] == "dataloader" else "sessions"
    make = make_batch(folder / "train", layout)
    order = order_of(len(make.read.places), _NUM_STEPS)
    if "dataloader" in job["engine"]:
        workers = job["workers"]
        yield DataLoader(MapStyle(make, order), batch_size=None, num_workers=workers, prefetch_factor=2), []
        return
    read = ElasticMapper(IterableSource(order), make.read, 1, name="read", min_workers=1)
    transform = ElasticMapper(read, make.transform, 1, name="transform", min_workers=1)
    with ElasticLoader(ElasticPrefetcher(transform, 2), num_batches=len(order)) as loader:
        yield loader, [InTuneCallback(log_decisions=False)] if job["engine"] == "ours" else []


def main() -> None:
    """Train as the JSON argument says, and print what was found as the last line."""
    job = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(job["threads"])
    validate = make_batch(Path(job["folder"]) / "validation", "sessions")
    waits = Waits()
    watch = Stopwatch(waits, [validate(index) for index in range(VALIDATION_BATCHES)], job)
    with loader_of(job) as (loader, callbacks):
        trainer = Trainer(
            max_epochs=1,
            callbacks=[*callbacks, watch],
            profiler=waits,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Clicks(job["model"]), loader)
    if callbacks:
        watch.found["widths"] = dict(callbacks[0].widths)  # type: ignore[attr-defined]
    watch.found["accelerator"] = type(trainer.accelerator).__name__
    print(json.dumps(watch.found), flush=True)
    os._exit(0)  # as the peers' child: what a loader leaves behind must not hold up the rest


if __name__ == "__main__":
    main()
