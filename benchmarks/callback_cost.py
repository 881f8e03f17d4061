"""What `InTuneCallback` costs the training thread, beside steps of 5 ms: CPU seconds, paired and alternating.

    python -m benchmarks.callback_cost [--quick] --json

Each pair is two runs of the same steps over the same three stages, one without and one with the callback, in turns
first. The thread's CPU clock counts, so that another job's work counts less than by the wall; quiet machines say more.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.result import main, put
from lightning_intune import InTuneCallback
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource

STEP_S = 0.005


class Busy(pl.LightningModule):
    """Steps of `STEP_S` CPU seconds of the training thread; `epoch_cpu_s` is what the whole epoch took of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.begun_s, self.epoch_cpu_s = torch.nn.Parameter(torch.zeros(1)), 0.0, 0.0

    def on_train_epoch_start(self) -> None:
        """Lightning's hook."""
        self.begun_s = time.thread_time()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """Lightning's hook."""
        end_s = time.thread_time() + STEP_S
        while time.thread_time() < end_s:
            pass
        return self.weight.sum()

    def on_train_epoch_end(self) -> None:
        """Lightning's hook."""
        self.epoch_cpu_s = time.thread_time() - self.begun_s

    def configure_optimizers(self) -> Any:
        """Lightning's hook."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def step_cpu_s(num_steps: int, folder: Path, *, tunes: bool) -> tuple[float, int]:
    """CPU seconds of the training thread per step, and how many turns there were."""
    node: Any = IterableSource(range(num_steps))
    for name in ("read", "transform"):
        node = ElasticMapper(node, _as_tensor, 1, name=name)
    tuners = [InTuneCallback()] if tunes else []
    model = Busy()
    with ElasticLoader(ElasticPrefetcher(node, 2), num_batches=num_steps) as loader:
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=tuners,
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(model, loader)
    return model.epoch_cpu_s / num_steps, len(tuners[0].history) if tuners else 0


def measure(quick: bool) -> dict[str, Any]:
    """Pairs of runs; the first of each kind is not counted."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_steps, num_pairs = (600, 3) if quick else (2_000, 9)
    added_us: list[float] = []
    num_turns: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tunes in (False, True):
            step_cpu_s(num_steps // 4, folder, tunes=tunes)
        for pair in range(num_pairs):
            cost: dict[bool, float] = {}
            for tunes in (False, True) if pair % 2 else (True, False):
                cost[tunes], turns = step_cpu_s(num_steps, folder, tunes=tunes)
                num_turns += [float(turns)] if tunes else []
            added_us.append(1e6 * (cost[True] - cost[False]))
    figures: dict[str, Any] = {"runs": num_pairs, "steps": num_steps, "step_ms": 1e3 * STEP_S}
    put(figures, "added_us_per_step", added_us)
    put(figures, "share_of_step", [us / (1e6 * STEP_S) for us in added_us])
    put(figures, "turns", num_turns)
    return figures


def table(figures: dict[str, Any]) -> str:
    """One line."""
    low, high = figures["share_of_step_spread"]
    return (
        f"The callback adds {figures['added_us_per_step']:.1f} us of CPU to a step of {figures['step_ms']:g} ms: "
        f"{figures['share_of_step']:.2%} ({low:.2%} to {high:.2%}), over {figures['turns']:.0f} turns a run."
    )


def _as_tensor(item: Any) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else torch.full((4,), item)


if __name__ == "__main__":
    main("CPU that the callback adds to a training step", measure, table)
