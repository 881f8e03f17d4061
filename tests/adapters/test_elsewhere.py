"""Elastic loaders where they are meant to run: under Lightning, and on Ray actors."""

from __future__ import annotations

import gc
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_intune import elastic
from tests.adapters.datasets import AugmentedStream, Squares, Uneven, as_list


@pytest.mark.parametrize("dataset", [Squares(40), Uneven([30, 30])], ids=["map-style", "iterable"])
def test_a_dropped_loader_takes_its_processes_along(dataset: Any) -> None:
    ours = elastic(DataLoader(dataset, batch_size=2, num_workers=2))
    assert len(list(islice(ours, 3))) == 3
    assert {stats.lane for stats in ours.stats().stages} == {"process"}
    del ours
    gc.collect()  # the fixture waits, and fails if a process stays


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dataset", "num_workers", "shuffle"),
    [(Squares(10), 2, True), (Uneven([7]), 0, None)],
    ids=["map-style", "iterable"],
)
def test_lightning_trains_on_the_same_batches(dataset: Any, num_workers: int, shuffle: bool | None) -> None:
    import lightning.pytorch as pl

    class Recorder(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[list[int]] = []

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            self.seen.append(batch.tolist())
            return self.weight * batch.float().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def seen(made: Any) -> list[list[int]]:
        pl.seed_everything(1, workers=True)
        module = Recorder()
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(module, made(DataLoader(dataset, batch_size=3, shuffle=shuffle, num_workers=num_workers)))
        return module.seen

    ours = seen(elastic)
    assert ours == seen(lambda loader: loader)
    assert len(ours) == 2 * (4 if num_workers else 3)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("dataset", [Squares(20), AugmentedStream([9, 4])], ids=["map-style", "iterable"])
def test_ray_actors_give_the_same_batches(dataset: Any) -> None:
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=as_list)
    torch.manual_seed(3)
    expected = list(loader)
    torch.manual_seed(3)
    with elastic(loader, method="ray") as ours:
        assert list(ours) == expected
        assert {stats.lane for stats in ours.stats().stages} == {"ray"}
