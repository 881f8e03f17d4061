"""Ranks over gloo, forked from one process: `python -m tests.overlap.gloo_ranks train KIND:STAGE ...`; prints JSON.

`train`: a DDP model's steps overlapped and waiting, and its state through torch's checkpoint and back, on as many
ranks, more and fewer. The others: a fault of rank 1 at one of the exchange's calls, as in tests/balance/gloo_faults.py,
or of its batches.
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

from lightning_intune.errors import ConfigError
from lightning_intune.overlap import GlooTransport, OverlappedTrainPipeline, Placement
from tests.balance.gloo_faults import Fault
from tests.overlap.ranks import Rank
from tests.overlap.training import MIXED, OPTIMIZERS, Model, Sample, Sharding, dealt, samples, state_of

TIMEOUT_S, LATE, SAVED_BY = 6.0, 1, 2
OTHERWISE: Sharding = {"items": "table_wise", "tags": Placement(sharding="table_wise", rank=0)}
STAGES = {"open": 0, "ids": 2, "marks": 9, "urgent": 15, "late": 16, "rest": 19}
"""Numbers of calls, as the first steps with two collections make them."""


def model_of(optimizer: str, timeout_s: float, sharding: Sharding = MIXED) -> Model:
    rank: Any = Rank(dist.get_rank(), GlooTransport(timeout_s=timeout_s), None)  # pyright: ignore[reportArgumentType]
    return Model(rank, OPTIMIZERS[optimizer], torch.float64, sharding)


def steps(pipeline: OverlappedTrainPipeline[Sample], batches: list[Sample]) -> list[float]:
    iterator, losses = iter(batches), []
    while True:
        try:
            losses.append(float(pipeline.progress(iterator)))
        except StopIteration:
            return losses


def pipeline_of(model: Model, *, overlap: bool) -> OverlappedTrainPipeline[Sample]:
    ddp = nn.parallel.DistributedDataParallel(model)
    return OverlappedTrainPipeline(ddp, torch.optim.SGD(model.dense.parameters(), lr=0.1), overlap=overlap)


def saved(model: Model) -> dict[str, Any]:
    fused = {name: getattr(model, name).fused_optimizer.state_dict() for name in ("bags", "later")}
    return {"model": model.state_dict(), "fused": fused}


def lists(model: Model) -> dict[str, list[Any]]:
    return {key: value.tolist() for key, value in state_of(model).items()}


def batches_of(rank: int) -> list[Sample]:
    return samples(rank, 12, overlap=0.5, dtype=torch.float64)


def train(rank: int, folder: Path) -> dict[str, Any]:
    """The first 5 of 12 steps, a checkpoint, and from it the others; beside it all of them at one go, waiting."""
    batches = batches_of(rank)
    out: dict[str, Any] = {}
    for name, overlap in (("ours", True), ("waiting", False)):
        model = model_of("adam", 60.0)
        if rank == 0:
            saved(model)  # makes no group either: those made from here on would have other numbers on other ranks
        pipeline = pipeline_of(model, overlap=overlap)
        iterator = iter(batches)
        losses = [float(pipeline.progress(iterator)) for _ in range(5)]
        if overlap:
            if rank == 0:
                out["keys"] = sorted(model.state_dict())  # no collective: one rank alone may ask
            dcp.save(saved(model), checkpoint_id=folder / "saved")  # while the next batch's rows are on their way
        losses += steps(pipeline, iterator)  # pyright: ignore[reportArgumentType] - an iterator is iterable
        out[name] = [losses, lists(model)]
        pipeline.shutdown()
    out["full"] = {key: list(value.full_tensor().shape) for key, value in model.bags.state_dict().items()}
    out["resumed"] = resumed(batches[5:], folder, MIXED)
    try:
        model_of("adam", 60.0).load_state_dict(model_of("adam", 60.0, OTHERWISE).state_dict())
    except ConfigError as error:
        out["refused"] = str(error)
    return out


def resumed(batches: list[Sample], folder: Path, sharding: Sharding) -> list[Any]:
    """Losses of the steps behind the checkpoint, and the state at the end."""
    model = model_of("adam", 60.0, sharding)
    model.scale = dist.get_world_size() / SAVED_BY
    state = saved(model)
    dcp.load(state, checkpoint_id=folder / "saved")
    model.load_state_dict(state["model"])
    for name in ("bags", "later"):
        getattr(model, name).fused_optimizer.load_state_dict(state["fused"][name])
    pipeline = pipeline_of(model, overlap=True)
    losses = steps(pipeline, batches)
    out = [losses, lists(model)]
    pipeline.shutdown()
    return out


def elsewhere(rank: int, world_size: int, folder: Path) -> list[Any]:
    """The same rows on another number of ranks, where what lay whole is cut, and what was cut lies whole."""
    batches = dealt([batches_of(one)[5:] for one in range(SAVED_BY)], rank, world_size)
    return resumed(batches, folder, OTHERWISE)


def at_fault(rank: int, kind: str, stage: str) -> str:
    """What rank `rank` ends with when rank 1 is at fault, or the number of its steps."""
    model = model_of("sgd", TIMEOUT_S)
    pipeline = OverlappedTrainPipeline(model, torch.optim.SGD(model.dense.parameters(), lr=0.1))
    batches = samples(rank, 4, overlap=0.5, dtype=torch.float64)
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
            join(rank, SAVED_BY, folder / "train")
            return train(rank, folder)

        def goes_on(rank: int, world_size: int) -> Any:
            join(rank, world_size, folder / f"goes on {world_size}")
            return elsewhere(rank, world_size, folder)

        def fails(rank: int, kind: str, stage: str) -> Any:
            join(rank, 3, folder / f"{kind} {stage}")
            begun_s = time.monotonic()
            return [at_fault(rank, kind, stage), time.monotonic() - begun_s]

        jobs: dict[str, Callable[[], Any]] = {}
        behind: dict[str, Callable[[], Any]] = {}
        for case in sys.argv[1:]:
            kind, _, stage = case.partition(":")
            if kind == "train":
                jobs |= {f"train/{rank}": partial(trains, rank) for rank in range(SAVED_BY)}
                behind |= {f"on {n}/{rank}": partial(goes_on, rank, n) for n in (1, 3) for rank in range(n)}
            else:
                jobs |= {f"{case}/{rank}": partial(fails, rank, kind, stage) for rank in range(3)}
        sys.stdout.write(json.dumps(forked(jobs) | forked(behind)) + "\n")


if __name__ == "__main__":
    main()
