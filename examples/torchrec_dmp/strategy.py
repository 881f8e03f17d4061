"""What Lightning must not do around DistributedModelParallel, and checkpoints of which every rank writes its part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn


class DmpStrategy(DDPStrategy):
    """One process per device, as DDP; but the model is TorchRec's, which shards, moves and reduces by itself.

    A checkpoint is two things: `FILE`, with everything that Lightning writes on rank 0, and the folder `FILE.shards`,
    into which every rank writes its tables and their optimizer's state (torch.distributed.checkpoint). The folder is
    complete before the file begins, so that a file that is there can be resumed from.
    """

    def setup(self, trainer: Trainer) -> None:
        """As DDP's, without the wrapper and without the broadcast of rank 0's weights: ranks own different tables."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """On every rank: the shards, then, on rank 0, Lightning's file."""
        dcp.save(self._sharded(), checkpoint_id=shards(filepath))
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Both, the file first."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            shutil.rmtree(shards(filepath), ignore_errors=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: it is in the shards."""
        return {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Lightning's file; the shards beside it are loaded when the model is."""
        self._loaded = checkpoint_path
        return super().load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:  # noqa: ARG002
        """Every rank reads the parts that are its own now."""
        state = self._sharded()
        dcp.load(state, checkpoint_id=shards(self._loaded))
        net = self.lightning_module.net
        net.load_state_dict(state["model"])
        net.fused_optimizer.load_state_dict(state["tables_optimizer"])

    def _sharded(self) -> dict[str, Any]:
        net = self.lightning_module.net
        return {"model": net.state_dict(), "tables_optimizer": net.fused_optimizer.state_dict()}


def shards(filepath: Any) -> Path:
    """The folder beside a checkpoint's file."""
    return Path(f"{filepath}.shards")
