"""A click model whose tables are sharded over the ranks, trained by TorchRec's pipeline."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from examples.torchrec_dmp.batch import Feed, TorchRecBatch, to_torchrec
from examples.torchrec_dmp.progress import count_one_more
from lightning_intune.dedup import Batch

# TorchRec 1.8 asks torch 2.13 by a name that torch has since given another meaning; nobody here can act on that.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class Net(nn.Module):
    """Pooled embeddings and dense features through a small network; gives (loss, what else), as the pipeline asks."""

    def __init__(self, tables: EmbeddingBagCollection, num_dense: int, hidden: int, device: torch.device) -> None:
        super().__init__()
        self.tables = tables
        width = sum(config.embedding_dim * len(config.feature_names) for config in tables.embedding_bag_configs())
        self.over = nn.Sequential(
            nn.Linear(num_dense + width, hidden, device=device), nn.ReLU(), nn.Linear(hidden, 1, device=device)
        )

    def forward(self, batch: TorchRecBatch) -> tuple[Tensor, tuple[Tensor, Tensor, TorchRecBatch]]:
        """The weighted mean log loss; and detached it, the logits, and the batch they are of."""
        pooled = self.tables(batch.sparse)
        logits = self.over(torch.cat([batch.dense, pooled.values()], dim=1))
        losses = binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")[:, 0]
        loss = (losses * batch.weights).sum() / batch.weights.sum().clamp(min=1)
        return loss, (loss.detach(), logits.detach(), batch)


class DmpModel(LightningModule):
    """`tables` gives each sparse feature's number of rows.

    TorchRec's pipeline takes two batches ahead of the one it trains on. The last step of an epoch therefore trains the
    two that are left in it as well: Lightning's hooks see two steps less than there are batches, its `global_step` all.
    """

    def __init__(
        self,
        tables: dict[str, int],
        num_dense: int,
        embedding_dim: int = 16,
        hidden: int = 32,
        learning_rate: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # the pipeline calls backward and the optimizer
        self._tables, self._num_dense, self._embedding_dim, self._hidden = tables, num_dense, embedding_dim, hidden
        self._learning_rate = learning_rate
        self.net: Any = None
        self._pipeline: Any = None
        self._feed = Feed(None)

    def configure_model(self) -> None:
        """Shard: Lightning calls this on every rank once the ranks can talk."""
        if self.net is not None:
            return
        configs = [
            EmbeddingBagConfig(
                name=f"table_{key}", embedding_dim=self._embedding_dim, num_embeddings=rows, feature_names=[key]
            )
            for key, rows in self._tables.items()
        ]
        whole = Net(
            EmbeddingBagCollection(tables=configs, device=torch.device("meta")),
            self._num_dense,
            self._hidden,
            self.device,
        )
        apply_optimizer_in_backward(RowWiseAdagrad, whole.tables.parameters(), {"lr": self._learning_rate})
        # Whole tables, each on one rank. Data-parallel tables would refuse deduplicated input (TorchRec 1.8).
        one_rank = ParameterConstraints(
            sharding_types=[ShardingType.TABLE_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
        )
        planner = EmbeddingShardingPlanner(
            topology=Topology(world_size=self.trainer.world_size, compute_device=self.device.type),
            constraints={config.name: one_rank for config in configs},
        )
        sharder: Any = EmbeddingBagCollectionSharder()
        plan = planner.collective_plan(whole, [sharder], torch.distributed.group.WORLD)
        self.net = DistributedModelParallel(whole, device=self.device, plan=plan, sharders=[sharder])

    def configure_optimizers(self) -> Any:
        """Of the dense part: tables are updated within the backward pass."""
        dense = dict(in_backward_optimizer_filter(self.net.named_parameters()))
        return KeyedOptimizerWrapper(dense, lambda parameters: torch.optim.Adagrad(parameters, lr=self._learning_rate))

    def sharded_state(self) -> dict[str, Any]:
        """For `ShardedStrategy`: what every rank saves its part of."""
        return {"model": self.net.state_dict(), "tables_optimizer": self.net.fused_optimizer.state_dict()}

    def load_sharded_state(self, state: dict[str, Any]) -> None:
        """What `sharded_state` gave."""
        self.net.load_state_dict(state["model"])
        self.net.fused_optimizer.load_state_dict(state["tables_optimizer"])

    def on_train_start(self) -> None:
        """Lightning's optimizer goes into the pipeline: its steps are counted as `global_step`."""
        self._pipeline = TrainPipelineSparseDist(self.net, self.optimizers(), self.device, execute_all_batches=True)

    def training_step(self, dataloader_iter: Any) -> None:
        """One batch; in the epoch's last step also those that the pipeline has taken ahead."""
        if self._feed.source is not dataloader_iter:
            self._feed = Feed(dataloader_iter)
        self.on_trained(*self._pipeline.progress(self._feed))
        while dataloader_iter.done and self._pipeline.batches:
            count_one_more(self.trainer)
            self.on_trained(*self._pipeline.progress(self._feed))

    def on_trained(self, loss: Tensor, logits: Tensor, batch: TorchRecBatch) -> None:  # noqa: ARG002 - for subclasses
        """One batch was trained on: the pipeline holds later ones already."""
        self.log("loss", loss, batch_size=len(logits), prog_bar=True)

    def on_validation_start(self) -> None:
        """Give the sharded modules back the `forward` that the pipeline has replaced by its own."""
        if self._pipeline is not None:
            self._pipeline.detach()

    def on_validation_end(self) -> None:
        """And the pipeline its own, with the input of the batch that is next sent anew.

        `attach` (TorchRec 1.8) sends it and does not wait for what comes back, which deduplicated input needs.
        """
        if self._pipeline is not None:
            self._pipeline.attach()
            for context in list(self._pipeline.contexts)[:1]:
                self._pipeline.wait_sparse_data_dist(context)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's
        """One batch, without the pipeline."""
        _, (loss, logits, _) = self.net(to_torchrec(batch).to(self.device))
        self.log("val_loss", loss, batch_size=len(logits), sync_dist=True, prog_bar=True)
