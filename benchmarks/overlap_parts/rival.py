"""TorchRec 1.8's own pipeline: row-wise sharded tables under `TrainPipelineSparseDist`, with its fused optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.overlap_parts.shaped import Messages, shaped
from benchmarks.overlap_parts.waits import Waits
from benchmarks.overlap_parts.workload import DIM, EPS, LR, NUM_EMBEDDINGS, Case, Net, Sample, whole_table

# TorchRec 1.8 asks torch 2.13 by a name that torch has since given another meaning; nobody here can act on that.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def sharded(case: Case) -> Any:
    """The case's table, its rows dealt out over all ranks, with row-wise Adagrad in its backward pass."""
    settings: Any = {
        "name": "table",
        "embedding_dim": DIM,
        "num_embeddings": NUM_EMBEDDINGS,
        "feature_names": case.features,
    }
    device, meta = torch.device("cpu"), torch.device("meta")
    whole: Any
    sharder: Any
    if case.is_sequence:
        whole = EmbeddingCollection(tables=[EmbeddingConfig(**settings)], device=meta)
        sharder = EmbeddingCollectionSharder()
    else:
        whole = EmbeddingBagCollection(tables=[EmbeddingBagConfig(**settings)], device=meta)
        sharder = EmbeddingBagCollectionSharder()
    apply_optimizer_in_backward(RowWiseAdagrad, whole.parameters(), {"lr": LR, "eps": EPS})
    size = dist.get_world_size()
    plan: Any = construct_module_sharding_plan(
        whole,
        {"table": row_wise(compute_kernel="fused")},
        sharder=sharder,
        local_size=size,
        world_size=size,
        device_type="cpu",
    )
    world: Any = dist.group.WORLD
    tables = sharder.shard(whole, plan, ShardingEnv.from_process_group(world), device)
    [weights] = tables.state_dict().values()
    for shard in weights.local_shards():
        first = shard.metadata.shard_offsets[0]
        shard.tensor.copy_(whole_table()[first : first + len(shard.tensor)])
    return tables


@final
class Rival:
    """TorchRec's pipeline as a contestant."""

    def __init__(self, case: Case, waits: Waits) -> None:
        self.net = Net(sharded(case), case)
        self.optimizer = torch.optim.SGD(self.net.over.parameters(), lr=LR)
        self._pipeline: Any = TrainPipelineSparseDist(self.net, self.optimizer, torch.device("cpu"))
        self.messages = Messages(link=case.link, waits=waits)

    @property
    def waits(self) -> Waits:
        """For rows and gradients, forward and backward, and for ids."""
        return self.messages.waits

    def progress(self, batches: Iterator[Sample]) -> Tensor:
        """Train on one batch."""
        with shaped(self.messages):
            return self._pipeline.progress(batches)

    def shutdown(self) -> bool:
        """It has no thread."""
        return True
