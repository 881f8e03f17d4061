"""What `InTuneCallback` costs the training thread, beside steps of 5 ms: CPU seconds, paired and alternating.

    python -m benchmarks.callback_cost [--quick] --json

Each round is three runs of the same steps over the same three stages, in turns first: without the callback, with it,
and with a tuner that comes and goes. The thread's CPU clock counts, so that another job's work counts less than by the
wall; quiet machines say more: a turn comes after so much time by the wall, in which a crowded machine makes fewer
steps (`wall_step_ms` tells).

`share_of_step` is the sum of two parts. `plain_us_per_step`, from the third run: how much longer the middle one of the
steps is in which the Trainer has the callback and the loader tells it of the step, than of those in which it has none
and nothing is told; they take turns by `BLOCK` steps. These steps are of `PLAIN_STEP_S`, and more: what is added to one
does not depend on how long it computes, and Lightning's own part of a step varies by so much that many are needed.
`turns_us_per_step`, from the second: how much longer that took on average than in the middle step, which is the
steps that begin or end a turn. Whole runs differ by much more than either, with and without the callback
(`whole_run_us_per_step`, with its spread).
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.result import main, put
from lightning_intune import InTuneCallback
from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource

STEP_S, PLAIN_STEP_S = 0.005, 0.001
BLOCK = 20
PLAIN_STEPS = 4
"""Times as many steps where the callback comes and goes."""
Mode = Literal["off", "on", "alternating"]


class Busy(pl.LightningModule):
    """Steps of `step_s` CPU seconds of the training thread; `epoch_cpu_s` is what the whole epoch took of it."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self.step_s = step_s
        self.weight, self.begun_s, self.epoch_cpu_s = torch.nn.Parameter(torch.zeros(1)), 0.0, 0.0
        self.began_s = self.epoch_s = 0.0
        self.steps_begun_s: list[float] = []
        self.before_step: Callable[[int], None] = lambda _: None

    def on_train_epoch_start(self) -> None:
        """Lightning's hook."""
        self.begun_s, self.began_s = time.thread_time(), time.perf_counter()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002 - Lightning's
        """Lightning's hook."""
        self.before_step(batch_idx)
        self.steps_begun_s.append(time.thread_time())
        end_s = self.steps_begun_s[-1] + self.step_s
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
    """Of one run, per step: CPU seconds of the training thread, those of the tuner's turns, seconds by the wall."""

    cpu_s: float
    plain_s: float
    """Of the median step of the blocks with the tuner, over that of those without; where they alternate."""
    turns_s: float
    """Of the mean of the tuner's steps, over their median."""
    wall_s: float
    num_turns: int


def step_cost(num_steps: int, folder: Path, mode: Mode) -> Cost:
    """A run of `num_steps` steps, `PLAIN_STEPS` times as many where the callback comes and goes."""
    num_steps *= PLAIN_STEPS if mode == "alternating" else 1
    node: Any = IterableSource(range(num_steps))
    for name in ("read", "transform"):
        node = ElasticMapper(node, _as_tensor, 1, name=name)
    tuner, model = InTuneCallback(), Busy(PLAIN_STEP_S if mode == "alternating" else STEP_S)
    calls_s = list[float]()
    with ElasticLoader(ElasticPrefetcher(node, 2), num_batches=num_steps) as loader:
        tell: Callable[[], object] = lambda: None  # noqa: E731 - until the callback has said what

        def timed() -> None:
            began_s = time.thread_time()
            tell()
            calls_s.append(time.thread_time() - began_s)

        def set_up(step: int) -> None:
            nonlocal tell
            if step == 0:
                assert loader.on_step is not None
                tell = loader.on_step
                loader.on_step = timed if mode == "on" else tell
            if mode == "alternating":
                is_there = _is_told(step) or step == num_steps - 1  # it is to see the end
                loader.on_step = tell if is_there else None
                present: list[pl.Callback] = model.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
                present[:] = [other for other in present if other is not tuner] + [tuner] * is_there

        if mode != "off":
            model.before_step = set_up
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[] if mode == "off" else [tuner],
            default_root_dir=folder,
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(model, loader)
    return Cost(
        cpu_s=model.epoch_cpu_s / num_steps,
        plain_s=_plain_s(np.diff(model.steps_begun_s)),
        turns_s=float(np.mean(calls_s) - np.median(calls_s)) if calls_s else 0.0,
        wall_s=model.epoch_s / num_steps,
        num_turns=len(tuner.history),
    )


def measure(quick: bool) -> dict[str, Any]:
    """Rounds of three runs; the first run of each kind is not counted."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_steps, num_rounds = (600, 3) if quick else (2_000, 9)
    modes: list[Mode] = ["off", "on", "alternating"]
    rounds: list[dict[Mode, Cost]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for mode in modes:
            step_cost(num_steps // 4, folder, mode)
        for at in range(num_rounds):
            order = modes[at % 3 :] + modes[: at % 3]
            rounds.append({mode: step_cost(num_steps, folder, mode) for mode in order})
    plain_us = [1e6 * costs["alternating"].plain_s for costs in rounds]
    turns_us = [1e6 * costs["on"].turns_s for costs in rounds]
    figures: dict[str, Any] = {"runs": num_rounds, "steps": num_steps, "step_ms": 1e3 * STEP_S}
    put(figures, "share_of_step", [sum(both) / (1e6 * STEP_S) for both in zip(plain_us, turns_us, strict=True)])
    put(figures, "plain_us_per_step", plain_us)
    put(figures, "turns_us_per_step", turns_us)
    put(figures, "whole_run_us_per_step", [1e6 * (costs["on"].cpu_s - costs["off"].cpu_s) for costs in rounds])
    put(figures, "wall_step_ms", [1e3 * costs["on"].wall_s for costs in rounds])
    put(figures, "turns", [float(costs["on"].num_turns) for costs in rounds])
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


def _is_told(step: int) -> bool:
    return step // BLOCK % 2 == 0


def _plain_s(steps_s: npt.NDArray[np.float64]) -> float:
    told = np.array([_is_told(step) for step in range(len(steps_s))])
    return float(np.median(steps_s[told]) - np.median(steps_s[~told]))


def _as_tensor(item: Any) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else torch.full((4,), item)


if __name__ == "__main__":
    main("CPU that the callback adds to a training step", measure, table)
