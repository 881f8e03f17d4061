"""The pipeline inside a LightningModule's `training_step(dataloader_iter)`."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_intune.dedup import KeyedJagged
from lightning_intune.overlap import Adam, OverlappedEmbeddingBagCollection, OverlappedTrainPipeline, Table

TABLE = Table(name="t", num_embeddings=20, embedding_dim=4, feature_names=("a",))
Batch = dict[str, Any]


def batches(count: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)
    return [
        {
            "sparse": KeyedJagged(["a"], torch.randint(20, (6,), generator=rng), torch.tensor([1, 2, 3])),
            "labels": torch.rand(3, 1, generator=rng),
        }
        for _ in range(count)
    ]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bags = OverlappedEmbeddingBagCollection([TABLE], Adam(lr=0.1))
        self.over = nn.Linear(4, 1)
        rng = torch.Generator().manual_seed(1)
        for parameter in self.over.parameters():
            nn.init.normal_(parameter, generator=rng)
        self.bags.load_state_dict({"embedding_bags.t.weight": torch.randn(20, 4, generator=rng)})
        self.losses: list[float] = []
        self.pipeline: Any = None

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = nn.functional.binary_cross_entropy_with_logits(
            self.over(self.bags.pooled(batch["sparse"])), batch["labels"]
        )
        return loss, loss.detach()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.over.parameters(), lr=0.1)

    def on_train_start(self) -> None:
        self.pipeline = OverlappedTrainPipeline(self, self.optimizers())

    def training_step(self, dataloader_iter: Any) -> None:
        ahead = map(itemgetter(0), dataloader_iter)  # Lightning adds the numbers of batch and loader
        self.losses.append(float(self.pipeline.progress(ahead)))
        while dataloader_iter.done:  # the last batch was read ahead, and Lightning makes no step for it
            try:
                self.losses.append(float(self.pipeline.progress(ahead)))
            except StopIteration:
                break

    def on_train_end(self) -> None:
        assert self.pipeline.shutdown()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tables_optimizer"] = self.bags.fused_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.bags.fused_optimizer.load_state_dict(checkpoint["tables_optimizer"])


def fit(net: Net, folder: Path, data: list[Batch], epochs: int, checkpoint: Path | None = None) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, DataLoader(data, batch_size=None), ckpt_path=checkpoint)
    return trainer


def by_hand(data: list[Batch], epochs: int) -> tuple[list[float], dict[str, Tensor]]:
    """Without Lightning or pipeline."""
    net = Net()
    optimizer = torch.optim.SGD(net.over.parameters(), lr=0.1)
    losses: list[float] = []
    for batch in data * epochs:
        optimizer.zero_grad()
        loss, _ = net(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, net.state_dict()


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_every_batch_is_trained_once_and_a_checkpoint_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    for count in (1, 4):
        data = batches(count)
        losses, expected = by_hand(data, 3)
        first = Net()
        trainer = fit(first, tmp_path, data, 1)
        assert first.losses == losses[:count]
        assert trainer.global_step == count
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        rest = Net()
        fit(rest, tmp_path, data, 3, tmp_path / "saved.ckpt")
        assert rest.losses == losses[count:]
        assert {key: value.tolist() for key, value in rest.state_dict().items()} == {
            key: value.tolist() for key, value in expected.items()
        }
