"""Random jagged data with repeats, and what equal rows are when looked for one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from lightning_intune.dedup import KeyedJagged

DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.uint8)


@st.composite
def jagged_batches(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES, min_rows: int = 0) -> KeyedJagged:
    """1 to 4 keys, `min_rows` to 12 rows out of few distinct ones, empty rows among them."""
    num_keys, num_rows = draw(st.integers(1, 4)), draw(st.integers(min_rows, 12))
    dtype = draw(st.sampled_from(dtypes))
    pool = draw(st.lists(st.lists(st.integers(0, 3), max_size=20), min_size=1, max_size=5))
    picks = draw(st.lists(st.sampled_from(pool), min_size=num_keys * num_rows, max_size=num_keys * num_rows))
    return jagged_of([f"f{k}" for k in range(num_keys)], picks, dtype)


def jagged_of(keys: list[str], rows: list[list[Any]], dtype: torch.dtype = torch.int64) -> KeyedJagged:
    values = torch.tensor([value for row in rows for value in row], dtype=dtype)
    return KeyedJagged(keys, values, torch.tensor([len(row) for row in rows], dtype=torch.int32))


def rows_of(jagged: Any, key: str) -> list[list[Any]]:
    values, lengths = jagged[key]
    return [part.tolist() for part in torch.split(values, lengths.tolist())]


def sessions(num_sessions: int, mean_rows: int, num_keys: int = 2, length: int = 5, seed: int = 0) -> KeyedJagged:
    """Clustered rows whose values stay within a session."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 2 * mean_rows, num_sessions)
    rows: list[list[int]] = []
    for _ in range(num_keys):
        for count in counts:
            row = rng.integers(0, 100, rng.integers(0, 2 * length)).tolist()
            rows.extend([row] * int(count))
    return jagged_of([f"f{k}" for k in range(num_keys)], rows)
