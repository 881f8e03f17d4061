"""Lists that continue one another, laid in one buffer: partial duplicates (RecD, arXiv 2211.05239)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lightning_intune.dedup.detect import to_numpy
from lightning_intune.dedup.groups import GroupShape
from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.rows import Engine, Rows, compiled, copy_rows


def share_shifted(ikjt: InverseKeyedJaggedTensor, *, engine: Engine = "auto") -> InverseKeyedJaggedTensor:
    """`InverseKeyedJaggedTensor.share_shifted`, by the engine asked for; both give the same.

    A stored row joins the buffer of the row before it where its list is that row's moved on by some values, the new
    ones all at one end (the end is tried both ways for each key, and the shorter buffer kept). Weights are refused with
    a ValueError: a value that two rows share has one place, and its weight may differ. A tensor that shares already is
    packed first.
    """
    if ikjt.weights() is not None:
        raise ValueError("share_shifted: a shared value has one place, and its weights may differ. Drop the weights.")
    shapes: list[GroupShape] = []
    values: list[npt.NDArray[Any]] = []
    starts: list[npt.NDArray[np.int64]] = []
    for shape in ikjt.shapes():
        counts: list[int] = []
        for key in shape.keys:
            one = ikjt.unique_key(key).jagged
            rows = Rows.packed(to_numpy(one.values()), one.lengths().numpy().astype(np.int32, copy=False))
            buffer, places = lay_out(rows, engine=engine)
            counts.append(len(buffer))
            values.append(buffer)
            starts.append(places)
        shapes.append(
            GroupShape(
                keys=shape.keys, num_rows=shape.num_rows, num_values=tuple(counts), has_inverse=shape.has_inverse
            )
        )
    old = ikjt.values()
    numbers = np.concatenate(values).view(to_numpy(old).dtype) if values else to_numpy(old)
    tensor = torch.from_numpy(numbers)
    return InverseKeyedJaggedTensor(
        shapes,
        tensor.view(torch.bfloat16) if old.dtype == torch.bfloat16 else tensor,
        ikjt.lengths(),
        ikjt.inverse_entries(),
        stride=ikjt.stride(),
        keys=ikjt.keys(),
        starts=torch.from_numpy(np.concatenate(starts)) if starts else None,
    )


def lay_out(rows: Rows, *, engine: Engine = "auto") -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The shared buffer of packed `rows`, and where each row begins in it.

    >>> rows = Rows.packed(np.array([1, 2, 3, 2, 3, 4, 9]), np.array([3, 3, 1], np.int32))
    >>> [part.tolist() for part in lay_out(rows)]
    [[1, 2, 3, 4, 9], [0, 1, 4]]
    """
    ways = [_lay_out(rows, newest_last, engine) for newest_last in (True, False)]
    return min(ways, key=lambda way: len(way[0]))


def _lay_out(rows: Rows, newest_last: bool, engine: Engine) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    kernels = compiled(engine)
    if kernels is None:
        return _lay_out_slowly(rows, newest_last)
    out = np.empty(int(rows.lengths.sum(dtype=np.int64)), rows.words.dtype)
    places = np.empty(len(rows.lengths), np.int64)
    count = kernels.share_shifted_rows(rows.words, rows.starts, rows.lengths, newest_last, out, places)
    return out[:count].copy(), places


def _lay_out_slowly(rows: Rows, newest_last: bool) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """What the kernel does, comparing each pair of neighbours by NumPy."""
    num_rows = len(rows.lengths)
    parts: list[npt.NDArray[Any]] = []
    places = np.empty(num_rows, np.int64)
    end, before = 0, rows.words[:0]
    for row in range(num_rows) if newest_last else reversed(range(num_rows)):
        one = copy_rows(rows, np.array([row]), engine="arrow")
        kept = _overlap(before, one)
        places[row] = end - kept
        parts.append(one[kept:])
        end += len(one) - kept
        before = one
    return np.concatenate([rows.words[:0], *parts]), places


def _overlap(before: npt.NDArray[Any], row: npt.NDArray[Any]) -> int:
    """How many of the last values of `before` are the first of `row`, at most."""
    for count in range(min(len(before), len(row)), 0, -1):
        if np.array_equal(before[-count:], row[:count]):
            return count
    return 0
