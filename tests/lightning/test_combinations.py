"""The same losses with and without the callback, beside whatever else a Trainer does; and it touches nothing else."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from lightning_intune.dedup.jagged import Batch
from lightning_intune.errors import ConfigError
from tests.lightning.conftest import NUM_ROWS, Clicks, Validated, trainer

ROOT = Path(__file__).parents[2]
Make = Callable[..., InTuneDataModule]


@pytest.fixture
def data(clicks: Path, schema: Schema) -> Make:
    def make(**settings: Any) -> InTuneDataModule:
        return InTuneDataModule(schema, **{"train": str(clicks), "batch_size": 200, **settings})

    return make


def busy_tuner() -> InTuneCallback:
    return InTuneCallback(turn_interval_s=0.01)


def both(folder: Path, model: type[Clicks], loaders: Callable[[], Any], **options: Any) -> tuple[Clicks, Clicks]:
    """The same run without the callback and with it."""
    models = []
    for tuners in ([], [busy_tuner()]):
        torch.manual_seed(0)
        models.append(model())
        trainer(folder, callbacks=tuners, **options).fit(models[-1], loaders())
    return models[0], models[1]


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"overfit_batches": 3, "max_epochs": 3}, 9),
        ({"overfit_batches": 0.2, "max_epochs": 2}, 12),
        ({"fast_dev_run": 2}, 2),
        ({"limit_train_batches": 4, "limit_val_batches": 2, "max_epochs": 3}, 12),
        ({"val_check_interval": 7, "check_val_every_n_epoch": None, "max_epochs": 2}, 60),
        ({"val_check_interval": 0.2, "accumulate_grad_batches": 4}, 30),
        ({"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}, 30),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 60),
        ({"max_steps": 37, "max_epochs": -1}, 37),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_losses_are_the_same_beside_a_trainers_other_settings(
    options: dict[str, Any], num_steps: int, clicks: Path, data: Make, tmp_path: Path
) -> None:
    plain, tuned = both(tmp_path, Validated, lambda: data(val=str(clicks / "part-1.parquet")), **options)
    assert len(tuned.losses) == num_steps
    assert tuned.losses == plain.losses
    assert tuned.rows == plain.rows


class Pairs(Clicks):
    """Trains on two loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        parts = [part for part in (batch.values() if isinstance(batch, dict) else batch) if part is not None]
        return torch.stack([super(Pairs, self).training_step(part, batch_idx) for part in parts]).sum()


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("kind", [dict, list])
def test_losses_are_the_same_with_several_loaders(mode: Any, kind: Any, data: Make, tmp_path: Path) -> None:
    def loaders() -> CombinedLoader:
        pair = {"few": data(batch_size=500).train_dataloader(), "many": data().train_dataloader()}
        return CombinedLoader(pair if kind is dict else list(pair.values()), mode)

    plain, tuned = both(tmp_path, Pairs, loaders, max_epochs=2)
    assert len(tuned.losses) == 2 * {"min_size": 24, "max_size": 42, "max_size_cycle": 60}[mode]
    assert tuned.losses == plain.losses
    assert tuned.rows == plain.rows


def test_half_precision_is_bfloat16_on_a_cpu_and_losses_are_the_same(data: Make, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not supported on CPU. Using `precision='bf16-mixed'"):
        plain, tuned = both(tmp_path, Clicks, data, precision="16-mixed")
    assert tuned.losses == plain.losses


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_losses_are_the_same_on_a_gpu(precision: Any, data: Make, tmp_path: Path) -> None:
    plain, tuned = both(tmp_path, Clicks, data, precision=precision, accelerator="gpu")
    assert tuned.losses == plain.losses


class Quiet(Clicks):
    """Writes nothing down where the compiler looks."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # of torch's compiler
def test_a_module_compiled_by_inductor_trains_as_an_eager_one(
    data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # its pool of processes outlives the test
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Quiet()
        target: Any = torch.compile(model, backend="inductor", dynamic=True) if compiled else model
        trainer(tmp_path, callbacks=[busy_tuner()], limit_train_batches=6).fit(target, data())
        losses.append(model.losses)
    assert len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


PER_STEP = [name for name in dir(Callback) if name.startswith(("on_train_batch", "on_before", "on_after"))]


class Untouchable:
    """A batch, or outputs, on a device: whatever is asked of it could make the host wait."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the callback asked for {name!r}")


def test_no_hook_looks_at_a_batch_or_at_outputs_so_none_waits_for_the_device(data: Make, tmp_path: Path) -> None:
    tuner = busy_tuner()

    class Watched(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            InTuneCallback.on_train_batch_end(tuner, self.trainer, self, Untouchable(), Untouchable(), batch_idx)
            InTuneCallback.on_train_batch_start(tuner, self.trainer, self, Untouchable(), batch_idx)

    model = Watched()
    trainer(tmp_path, callbacks=[tuner]).fit(model, data())
    assert len(model.rows) == 30
    assert tuner.history


def test_a_step_without_balanced_batches_calls_no_hook_of_the_callback(data: Make, tmp_path: Path) -> None:
    tuner, called = busy_tuner(), set[str]()

    class Watched(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            called.update(name for name in PER_STEP if getattr(tuner, name) is not None)

    trainer(tmp_path, callbacks=[tuner]).fit(Watched(), data())
    assert not called
    assert all(callable(getattr(tuner, name)) for name in PER_STEP)  # as they were, for a run that is balanced


def test_nothing_is_logged_but_by_the_training_thread(
    clicks: Path, data: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threads: set[threading.Thread] = set()

    class Noting(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            threads.add(threading.current_thread())
            super().log_metrics(metrics, step)

    with caplog.at_level(logging.DEBUG):
        run = trainer(tmp_path, callbacks=[busy_tuner()], logger=Noting(tmp_path), max_epochs=2, log_every_n_steps=5)
        run.fit(Validated(), data(val=str(clicks)))
    assert threads == {threading.main_thread()}
    assert {record.thread for record in caplog.records} == {threading.main_thread().ident}


def test_a_pytorch_lightning_trainer_takes_the_callback_and_says_what_it_does_not_take(
    data: Make, tmp_path: Path
) -> None:
    package = pytest.importorskip("pytorch_lightning")

    class Theirs(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.num_rows = torch.nn.Parameter(torch.zeros(1)), 0

        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            self.num_rows += len(batch)
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def run(tuner: Any) -> Any:
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        return package.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[tuner],
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            **quiet,
        )

    tuner, model = busy_tuner(), Theirs()
    with data().train_dataloader() as loader:
        run(tuner).fit(model, loader)
    assert model.num_rows == NUM_ROWS
    assert set(tuner.widths) == {"read", "transform", "prefetch"}
    with pytest.raises(ConfigError, match=r"Import Trainer and LightningModule from lightning\.pytorch"):
        run(busy_tuner()).fit(Theirs(), data())
    with pytest.raises(ConfigError, match=r"or pass loaders"):
        run(busy_tuner()).fit(Theirs(), datamodule=data())


def test_a_datamodule_is_printed_without_reading_a_row(data: Make) -> None:
    module = data(test="elsewhere")
    module.train_dataloader()
    assert str(module) == repr(module)
    assert "test='elsewhere', batch_size=200, widths={'read': 1" in repr(module)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


SPAWN = """\
import sys
from pathlib import Path
from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from tests.lightning.conftest import Clicks, trainer

class Telling(Clicks):
    def on_train_end(self):
        print(f"rank {self.global_rank} trained {len(self.rows)} steps", flush=True)

if __name__ == "__main__":
    sparse = [SparseFeature(name="item", num_embeddings=64)]
    schema = Schema(dense=[DenseFeature(name="row")], sparse=sparse, labels=["click"])
    data = InTuneDataModule(schema, sys.argv[1], batch_size=500)
    run = trainer(Path(sys.argv[2]), callbacks=[InTuneCallback(turn_interval_s=0.01)], devices=2, strategy=sys.argv[3])
    run.fit(Telling(), data)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_two_ranks_train_as_notebooks_start_them(strategy: str, clicks: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    ended = subprocess.run(
        [sys.executable, script, clicks, tmp_path, strategy],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = sorted(re.findall(r"rank \d trained \d+ steps", ended.stdout))  # two ranks may write one line
    assert told == [f"rank {rank} trained 6 steps" for rank in range(2)]  # 3,000 rows each


PRESSED = """\
import os, sys, signal
from pathlib import Path
import torch
from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from tests.lightning.conftest import Clicks, trainer

class Endless(Clicks):
    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            print("training", flush=True)  # the test presses Ctrl-C now
        return super().training_step(batch, batch_idx)

if __name__ == "__main__":
    sparse = [SparseFeature(name="item", num_embeddings=64)]
    schema = Schema(dense=[DenseFeature(name="row")], sparse=sparse, labels=["click"])
    data = InTuneDataModule(schema, sys.argv[1], batch_size=100, method="process", widths={"transform": 2})
    trainer(Path(sys.argv[2]), callbacks=[InTuneCallback(turn_interval_s=0.01)], max_epochs=-1).fit(Endless(), data)
"""


def test_ctrl_c_ends_the_process_and_its_worker_processes(clicks: Path, tmp_path: Path) -> None:
    script = tmp_path / "pressed.py"
    script.write_text(PRESSED)
    run = subprocess.Popen(
        [sys.executable, script, clicks, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout is not None
    assert any("training" in line for line in run.stdout), run.communicate()[1][-2000:]
    below = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "Detected KeyboardInterrupt" in errors
    assert len(below) >= 2
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
