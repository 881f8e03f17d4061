"""How far a Trainer has come, as a loader's position and a logger's step need it; all that we know of its inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from lightning_intune.flow.loader import ElasticLoader


@final
class TrainerProgress:
    """How far a Trainer's `fit` has come in its epoch: what a checkpoint's loader position is made from.

    Lightning counts a batch as `ready` when it begins, as `processed` before `on_train_batch_end`, and goes on behind
    the processed ones after a restart. Its fetcher takes one batch ahead where there is no `len`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._fit = trainer, trainer.fit_loop
        self._batches = self._fit.epoch_loop.batch_progress
        self._epochs = self._fit.epoch_progress

    def num_fetched(self) -> int:
        """Batches taken from the loader in this epoch."""
        fetcher = self._fit._data_fetcher  # nothing public counts it
        return 0 if fetcher is None else fetcher.fetched

    def num_trained(self) -> int:
        """Batches trained on in this epoch."""
        return self._batches.current.processed

    def next_epoch(self) -> int | None:
        """The number of the epoch that comes next, where this one is over; else None."""
        batches = self._batches.current
        is_last = self._batches.is_last_batch or batches.ready == self._trainer.num_training_batches
        if not is_last or batches.ready == 0 or batches.processed < batches.ready:
            return None
        return self._epochs.current.started


def follow(loader: ElasticLoader[Any], trainer: Any) -> None:
    """Let a training loader's state be that of the last batch trained on, and its epochs one where they overfit."""
    loader.follow(TrainerProgress(trainer))
    loader.only_epoch = 0 if getattr(trainer, "overfit_batches", 0) > 0 else None
    # Resuming behind an epoch's end, Lightning 2.6 loads no state and tells the epoch only after it has called `iter`.
    loader.set_epoch(trainer.fit_loop.epoch_progress.current.processed)


def begin_resumed_epoch(trainer: Any, loaders: Iterable[ElasticLoader[Any]]) -> None:
    """Behind an epoch's end Lightning 2.6 resumes without loading a loader's state, and has called `iter` already.

    What it took then is of epoch 0. A DataModule of ours has told the epoch before; other loaders begin anew here.
    """
    fit = trainer.fit_loop
    fetcher = fit._data_fetcher  # nothing public begins an epoch's loaders
    is_behind_an_epoch = fit.is_resuming and not fit.restarting
    is_wrong = any(loader.only_epoch is None and loader.epoch != trainer.current_epoch for loader in loaders)
    if is_behind_an_epoch and is_wrong and fetcher is not None:
        iter(fetcher)


def logged_step(trainer: Any) -> int:
    """The step Lightning logs under now, as its own callbacks do.

    `global_step` is ahead of it at a batch's end and in validation, and counts every optimizer of manual optimisation:
    W&B drops what Lightning then logs under a lower step.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # nothing public
