"""From Arrow rows to deduplicated features: repeats are found first, and only unique rows are transformed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lightning_intune.config import SparseFeature
from lightning_intune.dedup.group_encoder import GroupEncoder, Part
from lightning_intune.dedup.groups import GroupShape, checked_groups
from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.jagged import KeyedJagged
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.rows import Engine
from lightning_intune.flow.transform import ToJagged


@final
class DedupSparse:
    """A function from a table of B rows to an `InverseKeyedJaggedTensor`, for `ToBatch(schema, sparse=...)`.

    Rows that repeat are found on the columns as they come, group by group as `plan` says; hashing, bucketing and the
    like then see each stored row once. A plan without groups leaves a plain `KeyedJagged`. Picklable, and safe in
    several threads. ConfigError for a feature of the plan that is not among `features`.

    >>> feature = SparseFeature(name="user", num_embeddings=80, transform="id")
    >>> sparse = DedupSparse([feature], DedupPlan.of(["user"]))(pa.table({"user": [3, 3, 5]}))
    >>> sparse.values().tolist(), sparse.inverse("user").tolist()
    ([4, 6], [0, 0, 1])
    """

    def __init__(self, features: Sequence[SparseFeature], plan: DedupPlan, *, engine: Engine = "auto") -> None:
        self._keys = [feature.name for feature in features]
        by_name = {feature.name: feature for feature in features}
        groups = checked_groups(self._keys, plan.names)
        self._groups = [GroupEncoder([by_name[name] for name in group], engine=engine) for group in groups]
        self._rest = tuple(name for name in self._keys if name not in plan.features)
        self._rest_encoder = ToJagged([by_name[name] for name in self._rest])

    def __call__(self, table: pa.Table) -> KeyedJagged | InverseKeyedJaggedTensor:
        """The features of these rows."""
        if not self._groups:
            return self._rest_encoder(table)
        parts: list[Part] = [encode(table) for encode in self._groups]
        if self._rest:
            parts.append((self._rest_encoder(table), None))
        return assemble(parts, self._keys, table.num_rows)


def assemble(parts: Sequence[Part], keys: Sequence[str], stride: int) -> InverseKeyedJaggedTensor:
    """One tensor of several groups; `keys` is the order that it tells."""
    shapes: list[GroupShape] = []
    for jagged, inverse in parts:
        counts = np.add.reduce(jagged.lengths().numpy().reshape(len(jagged.keys()), -1), axis=1, dtype=np.int64)
        shapes.append(
            GroupShape(
                keys=tuple(jagged.keys()),
                num_rows=jagged.stride(),
                num_values=tuple(counts.tolist()),
                has_inverse=inverse is not None,
            )
        )
    inverses = [inverse for _, inverse in parts if inverse is not None]
    return InverseKeyedJaggedTensor(
        shapes,
        _joined([jagged.values() for jagged, _ in parts]),
        _joined([jagged.lengths() for jagged, _ in parts]),
        _joined(inverses) if inverses else torch.empty(0, dtype=torch.int64),
        stride=stride,
        keys=keys,
    )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    # `torch.cat` would wake torch's own threads, within a stage whose width is the parallelism.
    return torch.from_numpy(np.concatenate([tensor.numpy() for tensor in tensors]))  # pyright: ignore[reportUnknownMemberType]
