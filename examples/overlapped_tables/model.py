"""A click model whose tables lie on all ranks, trained by the pipeline that exchanges rows behind the compute."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from examples.torchrec_dmp.progress import count_one_more
from lightning_intune.dedup import Batch
from lightning_intune.overlap import (
    Adagrad,
    OverlappedEmbeddingBagCollection,
    OverlappedTrainPipeline,
    Table,
    make_transport,
)


class Net(nn.Module):
    """Pooled embeddings and dense features through a small network; gives (loss, what else), as the pipeline asks."""

    def __init__(self, tables: OverlappedEmbeddingBagCollection, num_dense: int, hidden: int) -> None:
        super().__init__()
        self.tables = tables
        configs = tables.tables.tables
        width = sum(config.embedding_dim * len(config.feature_names) for config in configs)
        self.over = nn.Sequential(nn.Linear(num_dense + width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Batch]]:
        """The weighted mean log loss; and detached it, the logits, and the batch they are of."""
        logits = self.over(torch.cat([batch.dense, self.tables.pooled(batch.sparse)], dim=1))
        losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")[:, 0]
        weights = torch.ones_like(losses) if batch.weights is None else batch.weights
        loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        return loss, (loss.detach(), logits.detach(), batch)


class OverlappedModel(LightningModule):
    """`tables` gives each sparse feature's number of rows.

    The pipeline reads one batch ahead of the one it trains on. The last step of an epoch therefore trains the one that
    is left in it as well: Lightning's hooks see a step less than there are batches, its `global_step` all.
    """

    def __init__(
        self,
        tables: dict[str, int],
        num_dense: int,
        embedding_dim: int = 16,
        hidden: int = 32,
        learning_rate: float = 0.05,
        transport: str = "gloo",
        overlap: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # the pipeline calls backward and the optimizer
        self._tables, self._num_dense, self._embedding_dim, self._hidden = tables, num_dense, embedding_dim, hidden
        self._learning_rate, self._transport, self._overlap = learning_rate, transport, overlap
        self.net: Any = None
        self._whole: Any = None
        self._pipeline: Any = None

    def configure_model(self) -> None:
        """Make each rank's part of the tables: Lightning calls this on every rank once the ranks can talk."""
        if self.net is not None:
            return
        tables = [
            Table(name=f"table_{key}", num_embeddings=rows, embedding_dim=self._embedding_dim, feature_names=(key,))
            for key, rows in self._tables.items()
        ]
        optimizer = Adagrad(lr=self._learning_rate, row_wise=True)
        bags = OverlappedEmbeddingBagCollection(tables, optimizer, transport=make_transport(self._transport))
        self.net = Net(bags, self._num_dense, self._hidden)
        # Tables are no parameters, so that DDP averages the dense gradients and leaves the tables alone. It is hidden
        # from Lightning in a tuple: its parameters are `net`'s own.
        self._whole = (DistributedDataParallel(self.net) if self.trainer.world_size > 1 else self.net,)

    def configure_optimizers(self) -> Any:
        """Of the dense part: tables have their own."""
        return torch.optim.Adagrad(self.net.over.parameters(), lr=self._learning_rate)

    def sharded_state(self) -> dict[str, Any]:
        """For `ShardedStrategy`: what every rank saves its part of."""
        return {"model": self.net.state_dict(), "tables_optimizer": self.net.tables.fused_optimizer.state_dict()}

    def load_sharded_state(self, state: dict[str, Any]) -> None:
        """What `sharded_state` gave, of as many ranks as there are now."""
        self.net.load_state_dict(state["model"])
        self.net.tables.fused_optimizer.load_state_dict(state["tables_optimizer"])

    def on_train_start(self) -> None:
        """Lightning's optimizer goes into the pipeline: its steps are counted as `global_step`."""
        [whole] = self._whole
        self._pipeline = OverlappedTrainPipeline(whole, self.optimizers(), overlap=self._overlap)

    def training_step(self, dataloader_iter: Any) -> None:
        """One batch; in the epoch's last step also the one that the pipeline has read ahead."""
        ahead = map(itemgetter(0), dataloader_iter)  # Lightning adds the numbers of batch and loader
        self.on_trained(*self._pipeline.progress(ahead))
        while dataloader_iter.done:
            try:
                trained = self._pipeline.progress(ahead)
            except StopIteration:
                break
            count_one_more(self.trainer)
            self.on_trained(*trained)

    def on_trained(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:  # noqa: ARG002 - for subclasses
        """One batch was trained on: the pipeline holds a later one already."""
        self.log("loss", loss, batch_size=len(logits), prog_bar=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """One batch; where the pipeline is, it fetches the rows between two of its own messages."""
        _, (loss, logits, _) = self.net(batch)
        self.log("val_loss", loss, batch_size=len(logits), sync_dist=True, prog_bar=True)

    def on_train_end(self) -> None:
        """Nothing is left running."""
        self._pipeline.shutdown()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's
        """Likewise where a run fails."""
        if self._pipeline is not None:
            self._pipeline.shutdown()
