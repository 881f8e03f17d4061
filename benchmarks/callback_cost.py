"""What `InTuneCallback` costs the training thread, beside steps of 5 ms: CPU seconds, paired and alternating.

    python -m benchmarks.callback_cost [--quick] --json

Each pair is two runs of the same steps over the same three stages, one without and one with the callback, in turns
first. The thread's CPU clock counts, so that another job's work counts less than by the wall; quiet machines say more:
a turn comes after so much time by the wall, in which a crowded machine makes fewer steps (`wall_step_ms` tells).
`hook_us_per_step` is what was spent within the callback's own hook alone, turns included: it scatters less.
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

    def on_train_epoch_start(self) -> None:
        """Lightning's hook."""
        self.begun_s, self.began_s = time.thread_time(), time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """Lightning's hook."""
        end_s = time.thread_time() + STEP_S
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
    """Of one run, per step: CPU seconds of the training thread, those within our hook, seconds by the wall."""

    cpu_s: float
    hook_s: float
    wall_s: float
    num_turns: int


def step_cost(num_steps: int, folder: Path, *, tunes: bool) -> Cost:
    """A run of `num_steps` steps, with the callback if it `tunes`."""
    node: Any = IterableSource(range(num_steps))
    for name in ("read", "transform"):
        node = ElasticMapper(node, _as_tensor, 1, name=name)
    tuner, model, hook_s = InTuneCallback(), Busy(), [0.0]
    hook = tuner.on_train_batch_end

    def timed(*args: Any) -> None:
        began_s = time.thread_time()
        hook(*args)
        hook_s[0] += time.thread_time() - began_s

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
        hook_s=hook_s[0] / num_steps,
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
    added_us = [1e6 * (pair[True].cpu_s - pair[False].cpu_s) for pair in pairs]
    figures: dict[str, Any] = {"runs": num_pairs, "steps": num_steps, "step_ms": 1e3 * STEP_S}
    put(figures, "added_us_per_step", added_us)
    put(figures, "share_of_step", [us / (1e6 * STEP_S) for us in added_us])
    put(figures, "hook_us_per_step", [1e6 * pair[True].hook_s for pair in pairs])
    put(figures, "wall_step_ms", [1e3 * pair[True].wall_s for pair in pairs])
    put(figures, "turns", [float(pair[True].num_turns) for pair in pairs])
    return figures


def table(figures: dict[str, Any]) -> str:
    """One line."""
    low, high = figures["share_of_step_spread"]
    share = f"{figures['share_of_step']:.2%} ({low:.2%} to {high:.2%}), over {figures['turns']:.0f} turns a run"
    return (
        f"The callback adds {figures['added_us_per_step']:.1f} us of CPU to a step of {figures['step_ms']:g} ms: "
        f"{share}; {figures['hook_us_per_step']:.1f} us of it within its hook. By the wall a step took "
        f"{figures['wall_step_ms']:.1f} ms."
    )


def _as_tensor(item: Any) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else torch.full((4,), item)


if __name__ == "__main__":
    main("CPU that the callback adds to a training step", measure, table)
