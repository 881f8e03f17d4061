"""Three ranks over gloo, of which rank 1 is at fault at one of the exchange's calls: `python -m ... KIND`.

Forked from one process, all stages at once; prints what every rank had to say, by stage and rank, as JSON.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lightning_intune.balance import BalancedExchange
from lightning_intune.balance.channel import GlooChannel
from lightning_intune.flow import IterableSource

NUM_RANKS, LATE = 3, 1
STAGES = ("open", "tell lengths", "tell sizes", "send samples", "tell costs", "next window", "shut down")

# A stalled rank costs the others this long, in which those that live must come on a busy machine. Who opens the group
# waits for the dead as well, by its address, and then sees that it is.
STALL_S, OPEN_S = 20.0, 8.0
# Longer than this process lives: where a rank has ended, nobody waits for it.
UNREACHED_S = 600.0


def timeout_s(kind: str, stage: int) -> float:
    if STAGES[stage] == "open":
        return OPEN_S
    return STALL_S if kind in ("stalls", "is slow") else UNREACHED_S


class Fault:
    """What rank 1 does instead of its call number `stage`."""

    def __init__(self, kind: str, stage: int, call: Callable[[Any], Any]) -> None:
        self.kind, self.stage, self.call, self.num_calls = kind, stage, call, 0

    def __call__(self, collective: Any) -> Any:
        self.num_calls += 1
        if self.num_calls == self.stage + 1:
            if self.kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "ends":
                os._exit(0)
            if self.kind == "fails":
                raise OSError("out of sockets")
            if self.kind == "stalls":  # until the others have given it up, and said so
                dist.distributed_c10d._get_default_store().wait(["given-up/0", "given-up/2"])
            if self.kind == "is slow":
                time.sleep(1.0)
        return self.call(collective)


def take(rank: int, stage: int, kind: str, store: Path) -> str | None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS)
    patience_s = timeout_s(kind, stage)
    channel = GlooChannel(patience_s)
    if rank == LATE:
        channel._call = Fault(kind, stage, channel._call)
    # Of lengths 9, 1, 9 and so on by rank: something moves in every window.
    samples = [[9, 1, 5][(rank + place) % 3] for place in range(12)]
    node = BalancedExchange(
        IterableSource(samples), length=int, batch_size=2, window=1, timeout_s=patience_s, channel=channel
    )
    try:
        if stage == STAGES.index("shut down") and rank == LATE:
            next(node)
            return None  # it takes no more, and says nothing
        taken = [sample for batch in node for sample in batch.samples]
    except Exception as error:  # noqa: BLE001 - told
        # The store is at rank 0 in such a job; here it is a file.
        dist.distributed_c10d._get_default_store().set(f"given-up/{rank}", "yes")
        return f"{type(error).__name__}: {error}"
    return f"{len(taken)} samples"


def main() -> None:
    kind = sys.argv[1]
    pipes: dict[tuple[int, int], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        pids: list[int] = []
        for stage in range(len(STAGES)):
            for rank in range(NUM_RANKS):
                reading, writing = os.pipe()
                pid = os.fork()
                if pid == 0:
                    faulthandler.dump_traceback_later(100, exit=True)
                    began_s = time.monotonic()
                    text = take(rank, stage, kind, Path(folder) / str(stage))
                    os.write(writing, json.dumps([text, time.monotonic() - began_s]).encode())
                    os._exit(0)
                os.close(writing)
                pipes[stage, rank] = reading
                pids.append(pid)
        out: list[list[Any]] = [[None] * NUM_RANKS for _ in STAGES]
        for (stage, rank), reading in pipes.items():
            with os.fdopen(reading) as told:
                text = told.read()
            out[stage][rank] = json.loads(text) if text else None
        for pid in pids:
            os.waitpid(pid, 0)
    sys.stdout.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
