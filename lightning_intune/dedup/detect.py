"""From jagged features to the same with their repeated rows stored once, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_intune.dedup.groups import GroupShape, checked_groups
from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.dedup.rows import Engine, Found, Rows, copy_rows, find_equal_together


def deduplicate(
    jagged: KeyedJagged,
    groups: Sequence[Sequence[str]],
    *,
    weights: Tensor | None = None,
    engine: Engine = "auto",
) -> InverseKeyedJaggedTensor:
    """`InverseKeyedJaggedTensor.from_jagged`, by the engine asked for.

    A group in which no row repeats is stored as it is, without an inverse. The tensors must lie on the CPU.
    """
    keys, num_rows = jagged.keys(), jagged.stride()
    wanted = checked_groups(keys, groups)
    features = _features(jagged)
    extra = None if weights is None else _same_rows(features, weights)
    found: list[tuple[tuple[str, ...], Found]] = []
    for group in wanted:
        parts = [features[keys.index(key)] for key in group]
        parts += [] if extra is None else [extra[keys.index(key)] for key in group]
        equal = find_equal_together(parts, engine=engine)
        if len(equal.firsts) < num_rows:
            found.append((group, equal))
    repeating = {key for group, _ in found for key in group}
    rest = tuple(key for key in keys if key not in repeating)
    shapes = [_shape(group, equal.firsts, features, keys) for group, equal in found]
    if rest:
        counts = tuple(int(features[keys.index(key)].lengths.sum(dtype=np.int64)) for key in rest)
        shapes.append(GroupShape(keys=rest, num_rows=num_rows, num_values=counts, has_inverse=False))
    chosen = [*((group, equal.firsts) for group, equal in found), *([(rest, None)] if rest else [])]
    values = _stored(features, keys, chosen, shapes, jagged.values(), engine)
    stored_weights = None
    if weights is not None and extra is not None:
        stored_weights = _stored(extra, keys, chosen, shapes, weights, engine)
    lengths = [_lengths(features[keys.index(key)], rows) for group, rows in chosen for key in group]
    return InverseKeyedJaggedTensor(
        shapes,
        values,
        torch.from_numpy(np.concatenate(lengths)) if lengths else jagged.lengths(),
        torch.from_numpy(np.concatenate([equal.inverse for _, equal in found])) if found else _no_inverse(),
        stride=num_rows,
        keys=keys,
        weights=stored_weights,
    )


def _features(jagged: KeyedJagged) -> list[Rows]:
    num_rows, num_keys = jagged.stride(), len(jagged.keys())
    lengths = jagged.lengths().numpy().astype(np.int32, copy=False)
    rows = Rows.packed(to_numpy(jagged.values()), lengths)
    spans = [slice(k * num_rows, (k + 1) * num_rows) for k in range(num_keys)]
    return [Rows(words=rows.words, starts=rows.starts[span], lengths=lengths[span]) for span in spans]


def _same_rows(features: Sequence[Rows], values: Tensor) -> list[Rows]:
    words = Rows.packed(to_numpy(values), np.zeros(0, np.int32)).words
    return [Rows(words=words, starts=rows.starts, lengths=rows.lengths) for rows in features]


def _shape(group: tuple[str, ...], firsts: npt.NDArray[np.int64], features: list[Rows], keys: list[str]) -> GroupShape:
    counts = tuple(int(features[keys.index(key)].lengths[firsts].sum(dtype=np.int64)) for key in group)
    return GroupShape(keys=group, num_rows=len(firsts), num_values=counts)


def _lengths(rows: Rows, firsts: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int32]:
    return rows.lengths if firsts is None else rows.lengths[firsts]


def _stored(
    features: list[Rows],
    keys: list[str],
    chosen: Sequence[tuple[tuple[str, ...], npt.NDArray[np.int64] | None]],
    shapes: Sequence[GroupShape],
    like: Tensor,
    engine: Engine,
) -> Tensor:
    """The chosen rows' values of every group, in new memory of the dtype of `like`."""
    out = torch.empty(sum(sum(shape.num_values) for shape in shapes), dtype=like.dtype)
    words = Rows.packed(to_numpy(out), np.zeros(0, np.int32)).words
    end = 0
    for (group, firsts), shape in zip(chosen, shapes, strict=True):
        for key, count in zip(group, shape.num_values, strict=True):
            rows, part = features[keys.index(key)], words[end : end + count]
            if firsts is None:  # packed: a row of the batch follows the one before
                begin = int(rows.starts[0]) if len(rows.starts) else 0
                part[:] = rows.words[begin : begin + count]
            else:
                copy_rows(rows, firsts, engine=engine, out=part)
            end += count
    return out


def to_numpy(values: Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as an array of the same width; bfloat16, which NumPy lacks, as integers."""
    whole = values.detach().contiguous()
    return (whole.view(torch.int16) if whole.dtype == torch.bfloat16 else whole).numpy()


def _no_inverse() -> Tensor:
    return torch.empty(0, dtype=torch.int64)
