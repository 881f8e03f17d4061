"""Training steps behind which the next step's embeddings come, and the last step's gradients go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_intune.errors import ConfigError
from lightning_intune.overlap.bags import Features
from lightning_intune.overlap.collection import OverlappedCollection
from lightning_intune.overlap.exchange import Status
from lightning_intune.overlap.inputs import Input, observe
from lightning_intune.overlap.lane import Answer, Lane, Update
from lightning_intune.overlap.lookup import Lookup
from lightning_intune.overlap.transport import Transport, start
from lightning_intune.overlap.worker import Worker

In = TypeVar("In")

_JOIN_S = 5.0


@final
@dataclass(kw_only=True)
class Step(Generic[In]):
    """One batch, from its being read to its update; all but itself by collection."""

    batch: In | None
    """None: there was none."""
    asked: dict[str, Answer] = field(default_factory=dict[str, Answer])
    ready: dict[str, Answer] = field(default_factory=dict[str, Answer])
    """Like `asked`, once all of its rows are there."""
    leaves: dict[str, list[Tensor]] = field(default_factory=dict[str, "list[Tensor]"])
    """By stack, the rows as the model got them: their gradients come here."""


@final
class OverlappedTrainPipeline(Generic[In]):
    """`TrainPipelineSparseDist`'s `progress`, for models with overlapped collections: the exchange is hidden.

    While batch i computes, one thread asks the owners for the rows of batch i + 1. Rows that i updates on any rank and
    i + 1 reads on any rank wait for i; the others come at once. Behind i's backward pass the former's gradients go
    first, then those rows come, and step i + 1 begins while the other gradients of i are still on their way. No row is
    read before its last update: parameters, optimizer state and losses are those of `overlap=False`, where all rows and
    gradients wait for each other, and only ids go ahead.

    `model(batch)` returns (loss, output), as for TorchRec's pipelines, and hands its collections features that lie in
    the batch; which, and in what order, is seen in the first step, by a call of the model without gradients up to its
    last collection. `optimizer` is that of the dense parameters, which are DDP's or yours. `progress` returns the
    output and raises StopIteration behind the last batch; one batch is read ahead. All ranks must take equally many
    steps: RuntimeError on all where one ends before the others, fails, or dies.

    `transport` is the exchange's, by default the first collection's. `progress`, and what reads or loads state, belong
    to one thread, the trainer's. CPU only.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        device: torch.device | str = "cpu",
        *,
        overlap: bool = True,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        collections = {name: one for name, one in model.named_modules() if isinstance(one, OverlappedCollection)}
        if not collections:
            raise ConfigError(
                "overlap: the model has no OverlappedEmbeddingBagCollection or OverlappedEmbeddingCollection, so there "
                "is nothing to exchange. Put one in, or train without this pipeline."
            )
        if torch.device(device).type != "cpu":
            raise ConfigError(f"overlap: device={device} can hold no tables yet; they are on CPUs. Use device='cpu'.")
        self._model, self._optimizer, self._clock = model, optimizer, clock
        self._transport = start(transport or next(iter(collections.values())).transport, "cpu")
        self._lanes = {name: Lane(one, self._transport, waits=not overlap) for name, one in collections.items()}
        self._worker = Worker("OverlappedTrainPipeline")
        self._inputs: dict[str, Input] = {}
        self._present: Step[In] | None = None
        self._ahead: Step[In] | None = None
        self._last_update: Future[None] | None = None
        self._failure: BaseException | None = None
        self.waited_s = 0.0
        """How long steps have waited for rows so far: exposed communication, and ranks that came late."""
        for collection in collections.values():
            collection.feed = self

    @property
    def order(self) -> list[str]:
        """The collections in the order of first use; empty before the first step."""
        return list(self._inputs)

    @property
    def is_ahead(self) -> bool:
        """Whether a batch has been read ahead."""
        return self._ahead is not None

    def progress(self, dataloader_iter: Iterator[In]) -> Any:
        """Train on one batch, and return what the model returns beside the loss."""
        if self._failure is not None:
            raise RuntimeError(
                "overlap: a step has failed before, and the ranks are no longer in step. Make a new pipeline, and load "
                "a checkpoint."
            ) from self._failure
        try:
            return self._progress(dataloader_iter)
        except StopIteration:
            raise
        except BaseException as error:
            self._failure = error
            raise

    def rows(self, collection: OverlappedCollection, features: Features) -> tuple[Lookup, list[Tensor]]:
        """For a collection's `forward`: the rows of the present batch; outside of a step any batch's, for evaluation.

        RuntimeError for other features than those that were asked for.
        """
        name = next(name for name, lane in self._lanes.items() if lane.collection is collection)
        step = self._present
        if step is None:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"overlap: '{name}' is looked up with gradients enabled outside of `progress`, which alone can "
                    "train it. Evaluate under torch.no_grad(), or shut the pipeline down."
                )
            self._transport.open()
            return self._worker.submit(partial(self._lanes[name].fetch_aside, features)).result()
        if features is not self._inputs[name].features(step.batch) or name in step.leaves:
            raise RuntimeError(
                f"overlap: '{name}' looks up other features than those of the batch that were asked for ahead, or "
                "does so twice. In every step each collection must be called once, with the same part of the batch."
            )
        begun_s = self._clock()
        asked = step.ready[name].result()
        self.waited_s += self._clock() - begun_s
        assert asked is not None, "the step has a batch"
        step.leaves[name] = [rows.requires_grad_(torch.is_grad_enabled()) for rows in asked.turn.rows]
        return asked.lookup, step.leaves[name]

    def settle(self) -> None:
        """Wait until every update of the steps taken is made."""
        if self._last_update is not None:
            self._last_update.result()

    def shutdown(self) -> bool:
        """End the thread; whether it has ended within 5 s. Without the pipeline collections exchange on the spot.

        A batch read ahead is dropped. Every rank must have come so far; one that waits for another ends by the timeout.
        """
        self._ahead = None
        for lane in self._lanes.values():
            lane.collection.feed = None
        return self._worker.shutdown(_JOIN_S)

    def _progress(self, iterator: Iterator[In]) -> Any:
        if self._ahead is None:
            self._transport.open()
            self._ahead = self._look_ahead(iterator, None)
            self._ahead.ready = self._ahead.asked
        step = self._ahead
        if step.batch is None:
            for answer in step.asked.values():
                answer.result()  # raises where other ranks go on
            self.settle()
            self._ahead = None
            raise StopIteration
        self._ahead = self._look_ahead(iterator, step)
        self._present = step
        try:
            return self._train(step, self._ahead)
        finally:
            self._present = None

    def _look_ahead(self, iterator: Iterator[In], before: Step[In] | None) -> Step[In]:
        """Read the next batch, and have its rows asked for."""
        try:
            batch = next(iterator)
            if not self._inputs:
                collections = {name: lane.collection for name, lane in self._lanes.items()}
                self._inputs = {one.name: one for one in observe(self._model, collections, batch)}
        except StopIteration:
            return self._ask(Step[In](batch=None), before, Status.END)
        except Exception:
            self._ask(Step[In](batch=None), before, Status.FAILED)
            raise
        return self._ask(Step(batch=batch), before, Status.BATCH)

    def _ask(self, step: Step[In], before: Step[In] | None, status: Status) -> Step[In]:
        for name in self._inputs or self._lanes:
            features = partial(self._inputs[name].features, step.batch) if status == Status.BATCH else None
            asked_before = None if before is None else before.asked[name]
            step.asked[name] = self._worker.submit(partial(self._lanes[name].ask, features, status, asked_before))
        return step

    def _train(self, step: Step[In], behind: Step[In]) -> Any:
        is_training = self._model.training
        if is_training:
            self._optimizer.zero_grad()
        with torch.set_grad_enabled(is_training and torch.is_grad_enabled()):
            losses, output = self._model(step.batch)
        if is_training:
            torch.sum(losses, dim=0).backward()
        self._finish(step, behind)
        if is_training:
            self._optimizer.step()
        return output

    def _finish(self, step: Step[In], behind: Step[In]) -> None:
        """Have the updates made, and what waits for them fetched: what is used first goes first, what can wait last."""
        updates = {name: self._update(name, step) for name in self._inputs}
        for name, update in updates.items():
            job = partial(self._lanes[name].finish, step.asked[name], update, behind.asked[name])
            behind.ready[name] = self._worker.submit(job)
        for name, update in updates.items():
            self._last_update = self._worker.submit(partial(self._lanes[name].give_rest, step.asked[name], update))

    def _update(self, name: str, step: Step[In]) -> Update:
        collection, leaves = self._lanes[name].collection, step.leaves.get(name)
        if leaves is None:
            raise RuntimeError(f"overlap: the model did not look up '{name}' in this step, as it did in the first.")
        if not self._model.training:
            return Update(grads=None, lr=0.0, step=0)
        collection.num_steps += 1
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        return Update(grads=grads, lr=collection.learning_rate, step=collection.num_steps)
