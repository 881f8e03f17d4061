"""Two gloo ranks with pipelines of unequal cost, as processes of their own: `python -m tests.lightning.unequal_ranks`.

Each rank, started with torchrun's variables, prints last what it may use of the machine once both have stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from lightning_intune import InTuneCallback
from lightning_intune.control import Budget
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from tests.lightning.conftest import trainer

CPU_MS = (2.0, 16.0)
STEPS = 400
BLOCK = bytes(64 << 10)


def blocks_per_ms() -> float:
    """How much one core hashes, without the GIL, in a millisecond of its time."""
    best = 0.0
    for _ in range(5):
        began_s = time.thread_time()
        for _ in range(40):
            hashlib.sha256(BLOCK).digest()
        best = max(best, 40 / (1e3 * (time.thread_time() - began_s)))
    return best


class Hash:
    """So many milliseconds of a core for each item."""

    def __init__(self, cpu_ms: float) -> None:
        self.data = bytes(int(cpu_ms * blocks_per_ms() * len(BLOCK)))

    def __call__(self, item: int) -> torch.Tensor:
        hashlib.sha256(self.data).digest()
        return torch.ones(4, 2)


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LookAtTheEnd(pl.Callback):
    """What this rank may use, read when all have made their last turn."""

    def __init__(self, tuner: InTuneCallback) -> None:
        self._tuner = tuner

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        dist.barrier()
        budgets = self._tuner._tuned._budgets
        assert budgets is not None
        reading = budgets._whole.read()
        whole = Budget().read()
        shares = [reading.cpus, whole.cpus, reading.memory_limit_bytes, whole.memory_limit_bytes]
        sys.stdout.write(json.dumps({"shares": shares, "turns": len(self._tuner.history)}) + "\n")


def main() -> None:
    source = IterableSource(range(STEPS))
    stage = ElasticMapper(source, Hash(CPU_MS[int(os.environ["RANK"])]), num_workers=1, name="hash")
    tuner = InTuneCallback(turn_interval_s=0.2, log_decisions=False)
    loader = ElasticLoader(stage, num_batches=STEPS)
    fit = trainer(Path.cwd(), strategy="ddp", devices=2, callbacks=[tuner, LookAtTheEnd(tuner)])
    fit.fit(Line(), loader)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
