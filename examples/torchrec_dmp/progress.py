"""What Lightning counts of an epoch whose last step trains several batches."""

from __future__ import annotations

from lightning.pytorch import Trainer


def count_one_more(trainer: Trainer) -> None:
    """Lightning counts steps; checkpoints hold how many *batches* of the epoch were trained on."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    for count in (
        batches.increment_ready,
        batches.increment_started,
        batches.increment_processed,
        batches.increment_completed,
    ):
        count()
