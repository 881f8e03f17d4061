"""Ranks of a training run as forked processes, of one that has imported everything: importing takes far longer."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path


def join_ranks(rank: int, ranks: int, port: int) -> None:
    """As torchrun tells its processes."""
    if ranks > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "runs",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
        }


def fork_ranks(run_rank: Callable[[int, int], None], ranks: int, *, limit_s: float) -> list[int]:
    """Exit codes, by rank, of `run_rank(rank, port)`. One that fails, or was killed, takes the others with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids: list[int] = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                faulthandler.dump_traceback_later(limit_s, exit=True)
                run_rank(rank, port)
                code = 0
            except BaseException:  # noqa: BLE001 - a fork must not run its parent's code
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] != 0:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def latest(folder: Path) -> Path | None:
    """The last whole checkpoint; None where there is none."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
