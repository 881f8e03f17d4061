"""Where batches are pinned and copied to the device ahead of the step, and that this changes nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from lightning_intune.errors import ConfigError
from lightning_intune.flow.device import PrefetchToDevice
from lightning_intune.flow.node import walk
from lightning_intune.flow.pin import PinMemory
from tests.lightning.conftest import Clicks, trainer

NO_RUN = RuntimeError("cut")


@pytest.mark.parametrize(
    ("pin_memory", "device", "is_there"),
    [("auto", "cuda:1", True), ("auto", "cpu", False), (True, "cpu", True), (False, "cuda:1", False)],
)
def test_the_graph_ends_with_the_copy_where_it_is_asked_for(
    pin_memory: bool | Literal["auto"], device: str, is_there: bool, clicks: Path, schema: Schema
) -> None:
    data = InTuneDataModule(schema, val=str(clicks), pin_memory=pin_memory)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)  # pyright: ignore[reportAttributeAccessIssue]
    root = data.val_dataloader().root
    assert isinstance(root, PrefetchToDevice) is is_there
    assert any(isinstance(node, PinMemory) for node in walk(root)) is is_there
    if isinstance(root, PrefetchToDevice):
        assert root.device == torch.device(device)


def test_losses_widths_and_resume_are_the_same_through_it(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    class Cut(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 11:
                self.trainer.save_checkpoint(tmp_path / "cut.ckpt")
                raise NO_RUN

    def run(model: Clicks, **settings: Any) -> tuple[Clicks, InTuneCallback]:
        data, tuner = InTuneDataModule(schema, str(clicks), batch_size=200, **settings), InTuneCallback(agent="hill")
        trainer(tmp_path, callbacks=[tuner]).fit(model, data)
        return model, tuner

    def fresh(kind: type[Clicks]) -> Clicks:
        torch.manual_seed(0)
        return kind()

    (plain, _), (copied, tuner) = run(fresh(Clicks)), run(fresh(Clicks), pin_memory=True)
    assert copied.losses == plain.losses
    assert set(tuner.widths) == {"read", "transform", "prefetch"}  # a copy has no width to warm-start with
    with pytest.raises(RuntimeError, match="cut"):
        run(fresh(Cut), pin_memory=True)
    data, resumed = InTuneDataModule(schema, str(clicks), batch_size=200, pin_memory=True), Clicks()
    trainer(tmp_path, callbacks=[InTuneCallback(agent="hill")]).fit(
        resumed, data, ckpt_path=tmp_path / "cut.ckpt", weights_only=False
    )
    assert resumed.rows == plain.rows[12:]
    assert resumed.losses == plain.losses[12:]


def test_another_word_than_auto_is_refused(schema: Schema) -> None:
    with pytest.raises(ConfigError, match="pin_memory='always' is unknown"):
        InTuneDataModule(schema, "data", pin_memory="always")  # type: ignore[arg-type]
