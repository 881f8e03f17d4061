"""A training script as many are: a DataLoader, a guess at nothing, a Trainer."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader

from examples.existing_dataloader.pictures import Classifier, Pictures


def train(pictures: Path, *, max_epochs: int) -> tuple[Classifier, Trainer]:
    """Fit the classifier on the pictures of that file."""
    seed_everything(0, verbose=False)
    loader = DataLoader(Pictures(pictures), batch_size=32, shuffle=True)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        default_root_dir=pictures.parent,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, loader)
    return model, trainer
