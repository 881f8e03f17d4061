"""Pictures in a packed file, as many vision data sets lie on disk: compressed, read one by one, cropped at random."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import final

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

SIDE, CROP, NUM_CLASSES = 128, 96, 4


def pack(path: Path, *, num_pictures: int, seed: int = 0) -> Path:
    """Write made-up pictures, each of one of four textures in noise, compressed, with an index beside them."""
    rng = np.random.default_rng(seed)
    offsets, labels = [0], rng.integers(0, NUM_CLASSES, num_pictures)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    with path.open("wb") as file:
        for label in labels:
            texture = np.sin(2 * np.pi * (4 + 3 * label) * (rows + columns * rng.random()))
            picture = 128 + 60 * texture[..., None] + rng.normal(0.0, 20.0, (SIDE, SIDE, 3))
            offsets.append(offsets[-1] + file.write(zlib.compress(picture.clip(0, 255).astype(np.uint8).tobytes())))
    np.savez(path.with_suffix(".npz"), offsets=offsets, labels=labels)
    return path


@final
class Pictures(Dataset[tuple[Tensor, int]]):
    """Picture [3, CROP, CROP] in [-1, 1] and its class; what is drawn at random depends on the index alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with np.load(path.with_suffix(".npz")) as index:
            self._offsets, self._labels = index["offsets"], index["labels"]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        with self._path.open("rb") as file:
            file.seek(begin)
            packed = file.read(end - begin)
        picture = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(SIDE, SIDE, 3)
        rng = np.random.default_rng(index)
        top, left = rng.integers(0, SIDE - CROP, 2)
        crop = picture[top : top + CROP, left : left + CROP]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        scaled = crop.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0
        return torch.from_numpy(scaled), int(self._labels[index])


class Classifier(lightning.LightningModule):
    """A small convolutional network; `losses` lists the loss of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, NUM_CLASSES),
        )  # fmt: skip

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Mean cross-entropy, nats."""
        pictures, labels = batch
        loss = nn.functional.cross_entropy(self.layers(pictures), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)
