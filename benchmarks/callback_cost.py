"""What `InTuneCallback` costs the training thread, beside steps of 5 ms: CPU seconds, paired and alternating.

    python -m benchmarks.callback_cost [--quick] --json

Each pair is two runs of the same steps over the same three stages, one without and one with the callback, in turns
first. The thread's CPU clock counts, so that another job's work counts less than by the wall; quiet machines say more:
a turn comes after so much time by the wall, in which a crowded machine makes fewer steps (`wall_step_ms` tells).

`share_of_step` is the sum of two parts. `plain_us_per_step`: how much longer the middle one of a run's steps is, from
one step's beginning to the next one's; most steps have no turn. `turns_us_per_step`: what the hook took in steps that
ended a turn, over all steps. Whole runs differ by more than either (`whole_run_us_per_step`, with its spread).
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
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
        self.began_s = self.epoch_s = 0.0
        self.steps_begun_s: list[float] = []

    def on_train_epoch_start(self) -> None:
        """Lightning's hook."""
        self.begun_s, self.began_s = time.thread_time(), time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """Lightning's hook."""
        self.steps_begun_s.append(time.thread_time())
        end_s = self.steps_begun_s[-1] + STEP_S
        while time.thread_time() < end_s:
            pass
        return self.weight.sum()

    def on_train_epoch_end(self) -> None:
        """Lightning's hook."""
        self.epoch_cpu_s, self.epoch_s = time.thread_time() - self.begun_s, time.perf_counter() - self.began_s

    def configure_optimizers(self) -> Any:
        """Lightning's hook."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run, per step: CPU seconds of the training thread, those of our hook's turns, seconds by the wall."""

    cpu_s: float
    middle_cpu_s: float
    """The median step's."""
    turns_s: float
    wall_s: float
    num_turns: int


def step_cost(num_steps: int, folder: Path, *, tunes: bool) -> Cost:
    """A run of `num_steps` steps, with the callback if it `tunes`."""
    node: Any = IterableSource(range(num_steps))
    for name in ("read", "transform"):
        node = ElasticMapper(node, _as_tensor, 1, name=name)
    tuner, model, turns_s = InTuneCallback(), Busy(), [0.0]
    hook = tuner.on_train_batch_end

    def timed(*args: Any) -> None:
        began_s, num_turns = time.thread_time(), len(tuner.history)
        hook(*args)
        if len(tuner.history) > num_turns:
            turns_s[0] += time.thread_time() - began_s

    tuner.__dict__["on_train_batch_end"] = timed
    with ElasticLoader(ElasticPrefetcher(node, 2), num_batches=num_steps) as loader:
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[tuner] if tunes else [],
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(model, loader)
    return Cost(
        cpu_s=model.epoch_cpu_s / num_steps,
        middle_cpu_s=float(np.median(np.diff(model.steps_begun_s))),
        turns_s=turns_s[0] / num_steps,
        wall_s=model.epoch_s / num_steps,
        num_turns=len(tuner.history),
    )


def measure(quick: bool) -> dict[str, Any]:
    """Pairs of runs; the first of each kind is not counted."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_steps, num_pairs = (600, 3) if quick else (2_000, 9)
    pairs: list[dict[bool, Cost]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tunes in (False, True):
            step_cost(num_steps // 4, folder, tunes=tunes)
        for pair in range(num_pairs):
            order = (False, True) if pair % 2 else (True, False)
            pairs.append({tunes: step_cost(num_steps, folder, tunes=tunes) for tunes in order})
    plain_us = [1e6 * (pair[True].middle_cpu_s - pair[False].middle_cpu_s) for pair in pairs]
    turns_us = [1e6 * pair[True].turns_s for pair in pairs]
    figures: dict[str, Any] = {"runs": num_pairs, "steps": num_steps, "step_ms": 1e3 * STEP_S}
    put(figures, "share_of_step", [sum(both) / (1e6 * STEP_S) for both in zip(plain_us, turns_us, strict=True)])
    put(figures, "plain_us_per_step", plain_us)
    put(figures, "turns_us_per_step", turns_us)
    put(figures, "whole_run_us_per_step", [1e6 * (pair[True].cpu_s - pair[False].cpu_s) for pair in pairs])
    put(figures, "wall_step_ms", [1e3 * pair[True].wall_s for pair in pairs])
    put(figures, "turns", [float(pair[True].num_turns) for pair in pairs])
    return figures


def table(figures: dict[str, Any]) -> str:
    """A few lines."""
    low, high = figures["share_of_step_spread"]
    least, most = figures["whole_run_us_per_step_spread"]
    return (
        f"The callback adds {figures['share_of_step']:.2%} ({low:.2%} to {high:.2%}) of CPU to a step of "
        f"{figures['step_ms']:g} ms: {figures['plain_us_per_step']:.1f} us to one without a turn, and "
        f"{figures['turns_us_per_step']:.1f} us for {figures['turns']:.0f} turns over all of a run's "
        f"{figures['steps']} steps.\nWhole runs differ by {figures['whole_run_us_per_step']:.0f} us a step "
        f"({least:.0f} to {most:.0f}). By the wall a step took {figures['wall_step_ms']:.1f} ms."
    )


def _as_tensor(item: Any) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else torch.full((4,), item)


if __name__ == "__main__":
    main("CPU that the callback adds to a training step", measure, table)
