"""Batches whose repeated feature rows are stored once: as a node of the graph, and as a stage's function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

from lightning_intune.dedup.ikjt import InverseKeyedJaggedTensor
from lightning_intune.dedup.jagged import Batch
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.errors import ConfigError, stage_error
from lightning_intune.flow.lookahead import Lookahead
from lightning_intune.flow.node import BaseNode, Node, State

Plan = DedupPlan | Sequence[Sequence[str]]


@final
class DedupBatch:
    """A function from a `Batch` to the same with the rows of each group stored once, for `ElasticMapper`. Picklable.

    A batch that is deduplicated already, or has no key of the plan, comes back as it is.

    >>> import torch
    >>> from lightning_intune.dedup import KeyedJagged
    >>> jagged = KeyedJagged(["user"], torch.tensor([7, 7]), torch.ones(2, dtype=torch.int32))
    >>> DedupBatch([["user"]])(Batch(dense=torch.ones(2, 1), sparse=jagged, labels=torch.ones(2, 1))).sparse.values()
    tensor([7])
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan if isinstance(plan, DedupPlan) else DedupPlan.of(*plan)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with repeats stored once; ConfigError for a key of the plan that it does not have."""
        if not isinstance(batch, Batch):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's graph
            raise ConfigError(
                f"DedupFeatures: an item is of {type(batch).__name__}, not a Batch. Put it behind `ToBatch`; for "
                "tables use `ToBatch(schema, sparse=DedupSparse(...))`, which also transforms unique rows only."
            )
        if isinstance(batch.sparse, InverseKeyedJaggedTensor) or not self.plan.groups:
            return batch
        return replace(batch, sparse=InverseKeyedJaggedTensor.from_jagged(batch.sparse, self.plan.names))


@final
class DedupFeatures(Node[Batch]):
    """The batches of `source` with the rows of each group of features stored once; the batch's rows stay.

    `plan` is a `DedupPlan`, or groups of feature names as in ``[["user", "history"], ["query"]]``. It works where it is
    pulled; to spread it over workers use `ElasticMapper(source, DedupBatch(plan), num_workers)`. A failure raises a
    StageError naming the item; a state taken then resumes with that item.
    """

    def __init__(self, source: BaseNode[Batch], plan: Plan, *, name: str = "dedup") -> None:
        super().__init__(source)
        self.name = name
        self._function, self._ahead = DedupBatch(plan), Lookahead(source)

    def reset(self, initial_state: State | None = None) -> None:
        super().reset(initial_state)
        self._ahead.reset(None if initial_state is None else initial_state["source"])

    def next(self) -> Batch:
        batch = self._ahead.pull()
        try:
            done = self._function(batch)
        except Exception as error:
            raise stage_error(self.name, self._ahead.num_pulled - 1, error) from error
        self._ahead.settle()
        return done

    def get_state(self) -> State:
        return {"source": self._ahead.state()}
