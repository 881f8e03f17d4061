"""What Lightning must not do around a model of sharded tables, and checkpoints of which every rank writes its part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn


class ShardedStrategy(DDPStrategy):
    """One process per device, as DDP; but the model shards, moves and reduces by itself.

    The LightningModule has `sharded_state`, a dictionary with `DTensor`s or `ShardedTensor`s, and `load_sharded_state`.

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
        module: Any = self.lightning_module
        dcp.save(module.sharded_state(), checkpoint_id=shards(filepath))
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
        module: Any = self.lightning_module
        state = module.sharded_state()
        dcp.load(state, checkpoint_id=shards(self._loaded))
        module.load_sharded_state(state)


def shards(filepath: Any) -> Path:
    """The folder beside a checkpoint's file."""
    return Path(f"{filepath}.shards")
