"""Ranks over gloo, forked from one process: `python -m tests.overlap.gloo_ranks train KIND:STAGE ...`; prints JSON.

`train`: a DDP model's steps overlapped and waiting, and its state through torch's checkpoint and back. The others: a
fault of rank 1 at one of the exchange's calls, as in tests/balance/gloo_faults.py, or of its batches.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from lightning_intune.overlap import GlooTransport, OverlappedTrainPipeline
from tests.balance.gloo_faults import Fault
from tests.overlap.ranks import Rank
from tests.overlap.training import OPTIMIZERS, Model, Sample, samples, state_of

TIMEOUT_S, LATE = 6.0, 1
STAGES = {"open": 0, "ids": 2, "marks": 9, "urgent": 15, "late": 16, "rest": 19}
"""Numbers of calls, as the first steps with two collections make them."""


def model_of(optimizer: str, timeout_s: float) -> Model:
    rank: Any = Rank(dist.get_rank(), GlooTransport(timeout_s=timeout_s), None)  # pyright: ignore[reportArgumentType]
    return Model(rank, OPTIMIZERS[optimizer], torch.float32)


def steps(pipeline: OverlappedTrainPipeline[Sample], batches: list[Sample]) -> list[float]:
    iterator, losses = iter(batches), []
    while True:
        try:
            losses.append(float(pipeline.progress(iterator)))
        except StopIteration:
            return losses


def train(rank: int, folder: Path) -> dict[str, Any]:
    """The first 5 of 12 steps, a checkpoint, and from it the others; beside it all of them at one go, waiting."""
    batches = samples(rank, 12, overlap=0.5, dtype=torch.float32)
    out: dict[str, Any] = {}

    def pipeline_of(model: Model, *, overlap: bool) -> OverlappedTrainPipeline[Sample]:
        ddp = nn.parallel.DistributedDataParallel(model)
        return OverlappedTrainPipeline(ddp, torch.optim.SGD(model.dense.parameters(), lr=0.1), overlap=overlap)

    def saved(model: Model) -> dict[str, Any]:
        fused = {name: getattr(model, name).fused_optimizer.state_dict() for name in ("bags", "later")}
        return {"model": model.state_dict(), "fused": fused}

    for name, overlap in (("ours", True), ("waiting", False)):
        model = model_of("adam", 60.0)
        pipeline = pipeline_of(model, overlap=overlap)
        iterator = iter(batches)
        losses = [float(pipeline.progress(iterator)) for _ in range(5)]
        if overlap:
            if rank == 0:
                out["keys"] = sorted(model.state_dict())  # no collective: one rank alone may ask
            dcp.save(saved(model), checkpoint_id=folder / "saved")  # while the next batch's rows are on their way
        losses += steps(pipeline, iterator)  # pyright: ignore[reportArgumentType] - an iterator is iterable
        out[name] = [losses, {key: value.tolist() for key, value in state_of(model).items()}]
        pipeline.shutdown()
    model = model_of("adam", 60.0)
    state = saved(model)
    dcp.load(state, checkpoint_id=folder / "saved")
    model.load_state_dict(state["model"])
    for name in ("bags", "later"):
        getattr(model, name).fused_optimizer.load_state_dict(state["fused"][name])
    pipeline = pipeline_of(model, overlap=True)
    losses = steps(pipeline, batches[5:])
    out["resumed"] = [losses, {key: value.tolist() for key, value in state_of(model).items()}]
    pipeline.shutdown()
    return out


def at_fault(rank: int, kind: str, stage: str) -> str:
    """What rank `rank` ends with when rank 1 is at fault, or the number of its steps."""
    model = model_of("sgd", TIMEOUT_S)
    pipeline = OverlappedTrainPipeline(model, torch.optim.SGD(model.dense.parameters(), lr=0.1))
    batches = samples(rank, 4, overlap=0.5, dtype=torch.float32)
    if rank == LATE and kind == "uneven":
        batches = batches[:2]
    if rank == LATE and kind == "bad id":
        batches[2].sparse.values().fill_(10**6)
    if rank == LATE and kind not in ("uneven", "bad id"):
        channel = model.bags.transport._channel
        channel._call = Fault(kind, STAGES[stage], channel._call)
    try:
        return f"{len(steps(pipeline, batches))} steps"
    except Exception as error:  # noqa: BLE001 - told
        dist.distributed_c10d._get_default_store().set(f"given-up/{rank}", "yes")
        return f"{type(error).__name__}: {error}"


def forked(jobs: dict[Any, Callable[[], Any]]) -> dict[Any, Any]:
    """What every job returns, each in a process of its own; None where that has died."""
    pipes: dict[Any, int] = {}
    pids: list[int] = []
    for name, job in jobs.items():
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(100, exit=True)
            try:
                with os.fdopen(writing, "w") as told:
                    told.write(json.dumps(job()))
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.close(writing)
        pipes[name] = reading
        pids.append(pid)
    out: dict[Any, Any] = {}
    for name, reading in pipes.items():
        with os.fdopen(reading) as told:
            text = told.read()
        out[name] = json.loads(text) if text else None
    for pid in pids:
        os.waitpid(pid, 0)
    return out


def join(rank: int, world_size: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)


def warm_up() -> None:
    """Import what a first optimizer step imports, once for all ranks."""
    weight = nn.Parameter(torch.ones(1))
    weight.sum().backward()
    torch.optim.SGD([weight], lr=0.1).step()


def main() -> None:
    """Everything named on the command line, at once: `train`, or KIND:STAGE."""
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def trains(rank: int) -> Any:
            join(rank, 2, folder / "train")
            return train(rank, folder)

        def fails(rank: int, kind: str, stage: str) -> Any:
            join(rank, 3, folder / f"{kind} {stage}")
            begun_s = time.monotonic()
            return [at_fault(rank, kind, stage), time.monotonic() - begun_s]

        jobs: dict[str, Callable[[], Any]] = {}
        for case in sys.argv[1:]:
            kind, _, stage = case.partition(":")
            if kind == "train":
                jobs |= {f"train/{rank}": partial(trains, rank) for rank in range(2)}
            else:
                jobs |= {f"{case}/{rank}": partial(fails, rank, kind, stage) for rank in range(3)}
        sys.stdout.write(json.dumps(forked(jobs)) + "\n")


if __name__ == "__main__":
    main()
