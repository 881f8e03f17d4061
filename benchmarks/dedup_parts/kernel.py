"""Rows per second and thread of the search for repeated rows, and of reading them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.result import put
from lightning_intune.dedup import KeyedJagged
from lightning_intune.dedup.detect import deduplicate
from lightning_intune.dedup.kernels import read_rows
from lightning_intune.dedup.rows import Rows

NUM_ROWS, NUM_FEATURES, NUM_IDS, SESSION_ROWS = 4096, 40, 20, 16


def made(*, shuffled: bool, seed: int = 0) -> KeyedJagged:
    """4096 rows of 40 features of 20 ids, 16 equal rows to a session, side by side or not."""
    rng = np.random.default_rng(seed)
    sessions = np.repeat(np.arange(NUM_ROWS // SESSION_ROWS), SESSION_ROWS)
    order = rng.permutation(sessions) if shuffled else sessions
    parts = [rng.integers(0, 1 << 40, (len(sessions), NUM_IDS))[order].ravel() for _ in range(NUM_FEATURES)]
    lengths = torch.full((NUM_FEATURES * NUM_ROWS,), NUM_IDS, dtype=torch.int32)
    return KeyedJagged([f"f{i}" for i in range(NUM_FEATURES)], torch.from_numpy(np.concatenate(parts)), lengths)


def kernel(runs: int) -> dict[str, Any]:
    """Thread CPU seconds of the whole conversion to an IKJT; a row is one feature's list in one sample."""
    figures: dict[str, Any] = {"kernel_rows_per_s": {}}
    reads: list[float] = []
    for name in ("clustered", "shuffled"):
        jagged = made(shuffled=name == "shuffled")
        rows = Rows.packed(jagged.values().numpy(), jagged.lengths().numpy())
        rates: list[float] = []
        for run in range(runs + 1):
            began_s = time.thread_time()
            deduplicate(jagged, [[key] for key in list(jagged.keys())])
            found_s = time.thread_time()
            read_rows(rows.words, rows.starts, rows.lengths)
            read_s = time.thread_time()
            if run:  # the first compiles
                rates.append(len(rows.lengths) / (found_s - began_s))
                reads.append(len(rows.lengths) / (read_s - found_s))
        put(figures["kernel_rows_per_s"], name, rates)
    put(figures, "read_bound_rows_per_s", reads)
    return figures
