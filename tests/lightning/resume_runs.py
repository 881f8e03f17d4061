"""Training runs that are killed and resumed, as processes of their own: `python -m tests.lightning.resume_runs JSON`.

Every rank appends what each step was trained on to a file of its own; the last line printed lists where resumed runs
differ from the unbroken one, and how many steps were compared.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from tests.forked_ranks import fork_ranks, join_ranks, latest
from tests.lightning.conftest import Validated, trainer

SCHEMA = Schema(
    dense=[DenseFeature(name="row")], sparse=[SparseFeature(name="item", num_embeddings=64)], labels=["click"]
)
LIMIT_S = 60
RunRank = Callable[..., None]


class Witness(Validated):
    """Writes down each step's rows and loss, and kills its process where it is told."""

    def __init__(self, log: Path, cut: tuple[str, int] | None) -> None:
        super().__init__()
        self._log, self._cut = log.open("a"), cut
        self._seen = {"step": 0, "saved": 0, "validation": 0}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.may_die("step")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = None if batch.weights is None else batch.weights.tolist()
        self._log.write(json.dumps([self.current_epoch, self.rows[-1], self.losses[-1], weights]) + "\n")
        self._log.flush()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.may_die("validation")
        super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.may_die("saved")  # before the file is written: the one before it counts

    def may_die(self, place: str) -> None:
        self._seen[place] += 1
        if self._cut == (place, self._seen[place]):
            os.kill(os.getpid(), signal.SIGKILL)


def run_rank(rank: int, folder: Path, name: str, setup: dict[str, Any], cut: Any, port: int, *, resumes: bool) -> None:
    ranks = setup["ranks"]
    join_ranks(rank, ranks, port)
    torch.manual_seed(0)
    saved = ModelCheckpoint(dirpath=folder / "saved" / name, save_top_k=-1, filename="{step}", **setup["saves"])
    callbacks: list[Any] = [InTuneCallback(turn_interval_s=0.02), saved] if setup["callback"] else [saved]
    widths = {"read": 3, "transform": 2, "prefetch": 5} if resumes else {}
    data = InTuneDataModule(
        SCHEMA, setup["data"], val=setup["data"] + "/part-1.parquet", widths=widths, **setup["settings"]
    )
    options = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
    run = trainer(folder, callbacks=callbacks, enable_checkpointing=True, **options, **setup["trainer"])
    checkpoint = latest(folder / "saved" / cut_name(name)) if resumes else None
    run.fit(Witness(folder / f"{name}-{rank}.jsonl", cut), data, ckpt_path=checkpoint, weights_only=False)


def run(
    run_rank: RunRank, folder: Path, name: str, setup: dict[str, Any], cut: Any = None, *, resumes: bool = False
) -> None:
    """One run, of a process for each rank."""

    def one(rank: int, port: int) -> None:
        run_rank(rank, folder, name, setup, cut, port, resumes=resumes)

    codes = set(fork_ranks(one, setup["ranks"], limit_s=LIMIT_S))
    expected = {0} if cut is None else {0, -signal.SIGKILL}
    if codes - expected:
        raise SystemExit(f"{name}: exit codes {codes}")


def cut_name(resumed: str) -> str:
    return resumed.replace("resumed", "cut")


def lines(folder: Path, name: str, ranks: int) -> list[list[Any]]:
    return [
        [json.loads(line) for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines()]
        for rank in range(ranks)
    ]


def main(run_rank: RunRank, num_done: Callable[[dict[str, Any]], int]) -> None:
    """Run what the command line asks for; `num_done` tells how many batches a checkpoint's run had trained on."""
    warnings.simplefilter("ignore")
    job = json.loads(sys.argv[1])
    differences: list[str] = []
    compared = 0
    trained: list[list[list[int]]] = []  # by setup, then epoch: the rows that weighed something, on any rank
    for at, setup in enumerate(job["setups"]):
        folder = Path(job["folder"]) / str(at)
        folder.mkdir()
        run(run_rank, folder, "whole", setup)
        whole = lines(folder, "whole", setup["ranks"])
        trained.append(rows_by_epoch(whole))
        for number, cut in enumerate(setup["cuts"]):
            run(run_rank, folder, f"cut{number}", setup, tuple(cut))
            checkpoint = latest(folder / "saved" / f"cut{number}")
            run(run_rank, folder, f"resumed{number}", setup, resumes=True)
            done = 0 if checkpoint is None else num_done(torch.load(checkpoint, weights_only=False))
            resumed = lines(folder, f"resumed{number}", setup["ranks"])
            compared += sum(map(len, resumed))
            if resumed != [rank[done:] for rank in whole]:
                differences.append(f"setup {at}, cut {cut}: {first_difference(resumed, whole, done)}")
    sys.stdout.write("\n" + json.dumps({"differences": differences, "compared": compared, "trained": trained}) + "\n")


def rows_by_epoch(whole: list[list[Any]]) -> list[list[int]]:
    steps = [step for rank in whole for step in rank]
    epochs = range(1 + max(epoch for epoch, *_ in steps))
    return [
        sorted(
            row for at, rows, _, weights in steps if at == epoch and (weights is None or any(weights)) for row in rows
        )
        for epoch in epochs
    ]


def first_difference(resumed: list[list[Any]], whole: list[list[Any]], done: int) -> str:
    for rank, (got, expected) in enumerate(zip(resumed, whole, strict=True)):
        for step, (left, right) in enumerate(zip(got, expected[done:], strict=False), done):
            if left != right:
                return f"rank {rank}, step {step}: {brief(left)}, and not {brief(right)}"
        if len(got) != len(expected) - done:
            return f"rank {rank}: {len(got)} steps, and not {len(expected) - done}"
    raise AssertionError("they are equal")


def brief(line: list[Any]) -> str:
    return f"epoch {line[0]}, rows {line[1][:4]}..., loss {line[2]}"


def num_processed(checkpoint: dict[str, Any]) -> int:
    return checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]


if __name__ == "__main__":
    main(run_rank, num_processed)
