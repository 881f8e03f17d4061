"""From Arrow rows to deduplicated features: repeats are found first, and only unique rows are transformed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt
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
        return assemble(self.parts(table), self._keys, table.num_rows)

    def parts(self, table: pa.Table) -> list[Part]:
        """The features of these rows, group by group."""
        parts = [encode(table) for encode in self._groups]
        return [*parts, Part.of(self._rest_encoder(table))] if self._rest else parts


def assemble(parts: Sequence[Part], keys: Sequence[str], stride: int) -> InverseKeyedJaggedTensor:
    """One tensor of several groups; `keys` is the order that it tells."""
    shapes: list[GroupShape] = []
    for part in parts:
        counts = np.add.reduce(part.lengths.reshape(len(part.keys), -1), axis=1, dtype=np.int64)
        shapes.append(
            GroupShape(
                keys=part.keys,
                num_rows=len(part.lengths) // len(part.keys),
                num_values=tuple(counts.tolist()),
                has_inverse=part.inverse is not None,
            )
        )
    return InverseKeyedJaggedTensor(
        shapes,
        _joined([piece for part in parts for piece in part.values]),
        _joined([part.lengths for part in parts]),
        _joined([part.inverse for part in parts if part.inverse is not None]),
        stride=stride,
        keys=keys,
    )


def _joined(pieces: Sequence[npt.NDArray[np.int64]] | Sequence[npt.NDArray[np.int32]]) -> Tensor:
    # `torch.cat` would wake torch's own threads, within a stage whose width is the parallelism.
    whole = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    return torch.from_numpy(whole)  # pyright: ignore[reportUnknownMemberType]
