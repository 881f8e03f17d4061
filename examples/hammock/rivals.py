"""The two models as functions from training files and test files to click probabilities."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Trainer, seed_everything

from examples.hammock.model import Hammock
from examples.hammock.schema import CATEGORIES, NUMBERS, quantised
from lightning_intune import InTuneCallback, InTuneDataModule

Floats = npt.NDArray[np.float64]
Files = Sequence[Path]


def hammock(
    train: Files, test: Files, *, num_hidden: int, ridge: float, epochs: int, batch_size: int = 1024, seed: int = 0
) -> Floats:
    """Probabilities [N] for the rows of `test`, in order, of a `Hammock` fitted on `train` by a tuned pipeline."""
    _quiet()
    seed_everything(seed, verbose=False)
    schema = quantised(train)
    paths = {"train": [str(file) for file in train], "test": [str(file) for file in test]}
    data = InTuneDataModule(schema, **paths, batch_size=batch_size, seed=seed)
    model = Hammock(schema, num_hidden=num_hidden, ridge=ridge, base_rate=float(clicks(train).mean()))
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[InTuneCallback(seed=seed, log_decisions=False)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    model.eval()
    with torch.inference_mode(), data.test_dataloader() as batches:
        return torch.cat([torch.sigmoid(model(batch)).double() for batch in batches]).numpy()


def boosting(
    train: Files, test: Files, *, num_trees: int, num_leaves: int, learning_rate: float, seed: int = 0
) -> Floats:
    """Probabilities [N] for the rows of `test`, in order, of scikit-learn's histogram gradient boosting.

    It takes the numbers as they are, and cuts them into up to 255 bins itself; categories by their numbers among those
    of `train`, one that is new counting as missing.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = {name: _column(train, name).unique() for name in CATEGORIES}
    model = HistGradientBoostingClassifier(
        max_iter=num_trees,
        max_leaf_nodes=num_leaves,
        learning_rate=learning_rate,
        categorical_features=list(range(len(NUMBERS), len(NUMBERS) + len(CATEGORIES))),
        early_stopping=False,
        random_state=seed,
    )
    model.fit(_matrix(train, known), clicks(train))
    return model.predict_proba(_matrix(test, known))[:, 1]


def clicks(files: Files) -> Floats:
    """The labels [N] of all rows, in order."""
    return _column(files, "click").to_numpy().astype(np.float64)


def _matrix(files: Files, known: dict[str, pa.Array]) -> Floats:
    numbers = [_column(files, name).to_numpy().astype(np.float64) for name in NUMBERS]
    places = [pc.index_in(_column(files, name), value_set=known[name]) for name in CATEGORIES]
    return np.column_stack([*numbers, *(pc.cast(place, pa.float64()).to_numpy() for place in places)])  # null: NaN


def _column(files: Files, name: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for file in files for chunk in pq.read_table(file, columns=[name])[name].chunks])


def _quiet() -> None:
    """Keep what Lightning 2.6 says about its own insides off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*")  # asked of torch 2.13
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # advice for a DataLoader
