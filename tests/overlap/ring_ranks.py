"""Ranks over host_ring or copy_engine, forked from one process: `python -m tests.overlap.ring_ranks CASE ...`.

Prints JSON. CASE is `swap:RANKS`, `tcp:RANKS` (with a TCP store), `cuda:RANKS`, `train:`, for copy_engine `copy:RANKS`
and `leaves:2`, or KIND:STAGE as for gloo_ranks, where STAGE `within` and `halfway` are inside a call: with all ranks
come, before anything was sent or behind some of it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_intune.errors import ConfigError
from lightning_intune.overlap import GlooTransport, HostRingTransport, OverlappedTrainPipeline
from lightning_intune.overlap.copy_engine import CopyEngineTransport
from lightning_intune.overlap.transport import Transport
from tests.balance.gloo_faults import Fault
from tests.overlap.gloo_ranks import LATE, STAGES, TIMEOUT_S, forked, join, steps, warm_up
from tests.overlap.ranks import Rank
from tests.overlap.training import MIXED, OPTIMIZERS, Model, samples, state_of

DTYPES = (torch.float32, torch.bool, torch.bfloat16, torch.int64, torch.complex64, torch.float64, torch.uint8)
LARGE = 3_000_000
"""Bytes of one parcel: more than two sockets' buffers hold."""


def num_sockets() -> int:
    """How many this process has open."""
    folder = "/proc/self/fd"
    found = 0
    for name in os.listdir(folder):
        try:
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def table_of(rng: random.Random, world_size: int, call: int) -> list[list[int]]:
    """Entries from rank to rank: none at all, few, or more than fit into buffers."""
    if call % 7 == 3:
        return [[0] * world_size for _ in range(world_size)]
    most = LARGE // 4 if call % 10 == 9 else 50
    return [[rng.choice([0, 1, rng.randrange(most)]) for _ in range(world_size)] for _ in range(world_size)]


def differing(transport: Transport, gloo: GlooTransport, device: torch.device) -> list[int]:
    """Forty calls of any size and dtype, each rank late by chance, beside the same calls over gloo."""
    rank, world_size = gloo.rank, gloo.world_size
    rng, lags = random.Random(world_size), random.Random(f"lag {rank}")
    differ: list[int] = []
    for call in range(40):
        table = table_of(rng, world_size, call)
        dtype = DTYPES[call % len(DTYPES)]
        generator = torch.Generator().manual_seed(call * 10 + rank)
        sent = torch.randint(0, 2 if dtype == torch.bool else 100, (2 * sum(table[rank]),), generator=generator)
        sent = sent.to(dtype)[::2]  # not contiguous
        sizes = table[rank], [row[rank] for row in table]
        awaited = gloo.all_to_all(
            _bytes(sent.clone(memory_format=torch.contiguous_format)), *(_times(one, dtype) for one in sizes)
        )
        time.sleep(lags.choice([0.0, 0.0, 0.004]))
        got = transport.all_to_all(sent.to(device), *sizes)
        if not (got.device == device and got.dtype == dtype and torch.equal(_bytes(got), awaited)):
            differ.append(call)
    return differ


def swap(device: torch.device) -> dict[str, Any]:
    """What the ring brings otherwise than gloo, and the sockets it leaves."""
    before = num_sockets()
    ring, gloo = HostRingTransport(timeout_s=60), GlooTransport(timeout_s=60)
    gloo.open()
    with_gloo = num_sockets()
    ring.open()
    ring.open()
    differ = differing(ring, gloo, device)
    told = ring.describe()
    ring.close()
    return {"differ": differ, "describe": told, "left": num_sockets() - with_gloo, "gloo": with_gloo - before}


def copies(rank: int, kind: str) -> dict[str, Any]:
    """What copy_engine brings otherwise than gloo; or what a rank is told that cannot open, or outlives rank 1."""
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    gloo, transport = GlooTransport(timeout_s=60), CopyEngineTransport(timeout_s=60 if kind == "copy" else TIMEOUT_S)
    gloo.open()
    if kind == "copy":
        transport.open()
        return {"differ": differing(transport, gloo, device), "describe": transport.describe()}
    told = "nothing"
    try:
        transport.open()
        for _ in range(1 if rank == LATE else 2):
            transport.all_to_all(torch.ones(1000, device=device), [500, 500], [500, 500])
    except (RuntimeError, ConfigError) as error:
        told = str(error)
    return {"told": told}


def _times(sizes: list[int], dtype: torch.dtype) -> list[int]:
    return [size * dtype.itemsize for size in sizes]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().view(torch.uint8)


def model_of(optimizer: str, transport: Transport) -> Model:
    rank: Any = Rank(dist.get_rank(), transport, None)  # pyright: ignore[reportArgumentType]
    return Model(rank, OPTIMIZERS[optimizer], torch.float32, MIXED)


def train(rank: int) -> dict[str, Any]:
    """Losses and state over gloo and over the ring, overlapped and waiting."""
    batches, out = samples(rank, 12, overlap=0.5, dtype=torch.float32), {}
    for name, transport in (("gloo", GlooTransport(timeout_s=60)), ("ring", HostRingTransport(timeout_s=60))):
        for overlap in (True, False):
            model = model_of("adam", transport)
            optimizer = torch.optim.SGD(model.dense.parameters(), lr=0.1)
            pipeline = OverlappedTrainPipeline(model, optimizer, overlap=overlap, transport=transport)
            losses = steps(pipeline, batches)
            out[f"{name} {overlap}"] = [losses, {key: value.tolist() for key, value in state_of(model).items()}]
            assert pipeline.shutdown()
    return out


class Within:
    """What rank 1 does instead of step number `step` of the ring's work in the first call from `CALL` that has one."""

    CALL = 7

    def __init__(self, kind: str, step: int, transport: HostRingTransport, work: Callable[..., None]) -> None:
        self.kind, self.step, self.transport, self.work = kind, step, transport, work
        self.call, self.num_steps, self.is_done = 0, 0, False

    def __call__(self, *arguments: Any) -> None:
        call = self.transport._num_calls
        self.call, self.num_steps = call, self.num_steps + 1 if call == self.call else 1
        if call >= self.CALL and self.num_steps == self.step and not self.is_done:
            self.is_done = True
            Fault(self.kind, 0, lambda _: None)(None)
        self.work(*arguments)


def at_fault(rank: int, kind: str, stage: str) -> list[Any]:
    """What a rank ends with when rank 1 is at fault, or the number of its steps; and the sockets it has left."""
    transport = HostRingTransport(timeout_s=TIMEOUT_S)
    model = model_of("sgd", transport)
    pipeline = OverlappedTrainPipeline(model, torch.optim.SGD(model.dense.parameters(), lr=0.1))
    before = num_sockets()
    if rank == LATE and kind == "garbles":
        real = transport._exchange
        transport._exchange = lambda sent, out, coming: real(sent[:0], [0] * len(out), [0] * len(coming))
    elif rank == LATE and stage in ("within", "halfway"):
        transport.open()
        ring: Any = transport._ring
        ring._step = Within(kind, 1 if stage == "within" else 2, transport, ring._step)
    elif rank == LATE:
        transport._call = Fault(kind, STAGES[stage], transport._call)
    try:
        told = f"{len(steps(pipeline, samples(rank, 4, overlap=0.5, dtype=torch.float32)))} steps"
        transport.close()
    except Exception as error:  # noqa: BLE001 - told
        told = f"{type(error).__name__}: {error}"
        dist.distributed_c10d._get_default_store().set(f"given-up/{rank}", "yes")
    return [told, num_sockets() - before]


def main() -> None:
    """Everything named on the command line, at once."""
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def swaps(rank: int, kind: str, world_size: int) -> Any:
            if kind == "tcp":
                dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=world_size)
            else:
                join(rank, world_size, folder / f"{kind} {world_size}")
            if kind in ("copy", "leaves"):
                return copies(rank, kind)
            return swap(torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu"))

        def trains(rank: int) -> Any:
            join(rank, 2, folder / "train")
            return train(rank)

        def fails(rank: int, world_size: int, kind: str, stage: str) -> Any:
            join(rank, world_size, folder / f"{kind} {stage}")
            begun_s = time.monotonic()
            return [*at_fault(rank, kind, stage), time.monotonic() - begun_s]

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        jobs: dict[str, Callable[[], Any]] = {}
        for case in sys.argv[1:]:
            kind, _, stage = case.partition(":")
            if kind in ("swap", "tcp", "cuda", "copy", "leaves"):
                jobs |= {f"{case}/{rank}": partial(swaps, rank, kind, int(stage)) for rank in range(int(stage))}
            elif kind == "train":
                jobs |= {f"train/{rank}": partial(trains, rank) for rank in range(2)}
            else:
                jobs |= {f"{case}/{rank}": partial(fails, rank, 4, kind, stage) for rank in range(4)}
        import json

        sys.stdout.write(json.dumps(forked(jobs)) + "\n")


if __name__ == "__main__":
    main()
