"""What a stranger does with a freshly installed wheel: `release_check.py` runs this in an empty folder.

Nothing of the checkout can be imported here, and none of the extras is installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

if TYPE_CHECKING:  # its import is timed below
    from lightning_intune.dedup import Batch

EXTRAS = {
    "torchrec": "torchrec",
    "ray": "ray",
    "numba": "fast",
    "duckdb": "etl",
    "matplotlib": "plots",
}
IMPORT_LIMIT_S = 0.2
NEEDS_NUMBA = "lightning_intune.dedup.kernels"  # chosen by `engine="auto"` only where numba is


def import_is_quick() -> None:
    """Beyond torch and Lightning, which are imported already."""
    began_s, before = time.process_time(), set(sys.modules)
    import lightning_intune

    took_s = time.process_time() - began_s
    came = sorted(set(sys.modules) - before)
    assert took_s < IMPORT_LIMIT_S, (took_s, came)
    assert not Path(lightning_intune.__file__).is_relative_to(
        Path(__file__).resolve().parent.parent / "lightning_intune"
    )
    print(f"  import lightning_intune: {took_s * 1e3:.1f} ms of CPU, {len(came)} modules")
    began_s = time.process_time()
    from lightning_intune import InTuneCallback, InTuneDataModule, elastic

    names = [name.__name__ for name in (InTuneCallback, InTuneDataModule, elastic)]
    print(f"  {', '.join(names)}: {(time.process_time() - began_s) * 1e3:.0f} ms of CPU")


def every_module_imports() -> None:
    """None asks for an extra as it is imported."""
    import lightning_intune

    absent = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    assert absent == list(EXTRAS), f"this environment has extras: {set(EXTRAS) - set(absent)}"
    names = [module.name for module in pkgutil.walk_packages(lightning_intune.__path__, "lightning_intune.")]
    for name in names:
        if name != NEEDS_NUMBA:
            importlib.import_module(name)
    for package in ("flow", "dedup", "balance", "control"):
        module = importlib.import_module(f"lightning_intune.{package}")
        for public in module.__all__:
            getattr(module, public)
    print(f"  {len(names)} modules, none of which needs an extra to be imported")


def clicks(folder: Path, *, num_rows: int = 20_000) -> str:
    """Made-up clicks as Parquet; the price tells them."""
    rng = np.random.default_rng(0)
    price, item = rng.gamma(2.0, 10.0, num_rows), rng.integers(0, 50, num_rows)
    table = pa.table({"price": price, "item": item, "click": (price > 20).astype(np.int8)})
    pq.write_table(table, folder / "clicks.parquet", row_group_size=1_000)
    return str(folder / "clicks.parquet")


class ClickModel(pl.LightningModule):
    """A bag of items and the price."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.last = torch.nn.EmbeddingBag(1000, 4, mode="sum"), torch.nn.Linear(5, 1)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """The mean log loss."""
        values, lengths = batch.sparse["item"]
        items = self.items(values.long(), torch.cumsum(lengths.long(), 0) - lengths)
        logits = self.last(torch.cat([batch.dense, items], dim=1))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def training_tunes_itself() -> None:
    """The demo's core: Parquet, the DataModule, the callback with the shipped policy, widths at the end."""
    from lightning_intune import InTuneCallback, InTuneDataModule
    from lightning_intune.config import DenseFeature, Schema, SparseFeature

    schema = Schema(
        dense=[DenseFeature(name="price", transform="log1p")],
        sparse=[SparseFeature(name="item", num_embeddings=1000)],
        labels=["click"],
    )
    data = InTuneDataModule(schema, train=clicks(Path.cwd()), batch_size=256)
    tuner = InTuneCallback(turn_interval_s=0.1)
    trainer = pl.Trainer(
        max_epochs=8,
        callbacks=[tuner],
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(ClickModel(), datamodule=data)
    assert trainer.global_step == 8 * 79
    assert tuner.history
    assert set(tuner.widths) == {"read", "transform", "prefetch"}
    print(f"  {trainer.global_step} steps, {len(tuner.history)} turns, widths {tuner.widths}")


def double(value: int) -> int:
    """For a worker process to find."""
    return 2 * value


def process_lanes_work() -> None:
    """Worker processes find what they need in the installed package."""
    from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource

    with ElasticLoader(ElasticMapper(IterableSource(range(50)), double, 2, method="process")) as loader:
        assert list(loader) == [2 * value for value in range(50)]
    print("  worker processes work")


def what_needs_an_extra_names_it() -> None:
    """By `pip install 'lightning-intune[...]'` in the error, one line of it."""
    from lightning_intune.dedup import KeyedJagged
    from lightning_intune.errors import ConfigError
    from lightning_intune.flow import ElasticMapper, IterableSource

    jagged = KeyedJagged(["a"], torch.tensor([1]), torch.tensor([1], dtype=torch.int32))
    calls: dict[str, Callable[[], object]] = {
        "ray": lambda: ElasticMapper(IterableSource(range(3)), double, 1, method="ray"),
        "torchrec": lambda: jagged.to_kjt(),
    }
    for extra, call in calls.items():
        said = ""
        try:
            call()
        except ConfigError as error:
            said = str(error)
        assert f"lightning-intune[{extra}]" in said, (extra, said)
    print(f"  {' and '.join(calls)} are named where they are missing")


def console() -> None:
    """Every command answers; those that need DuckDB name its extra."""
    command = str(Path(sys.executable).parent / "lightning-intune")

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *words], capture_output=True, text=True, check=False)

    for name in ("fit", "validate", "test", "predict", "analyze", "cluster", "schema", "synth", "pretrain"):
        assert ask(name, "--help").returncode == 0, name
    made = ask("synth", "log.parquet", "--rows", "2000", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["num_rows"] == 2000
    assert "labels: [label]" in ask("schema", "log.parquet", "--label", "label").stdout
    for words in (
        ["analyze", "log.parquet"],
        ["cluster", "log.parquet", "out", "--session", "session", "--time", "ts"],
    ):
        said = ask(*words)
        assert said.returncode == 2, said
        assert "lightning-intune[etl]" in said.stderr, said
        assert "Traceback" not in said.stderr, said
    print("  the console commands answer")


def main() -> None:
    """Everything, in order; the first thing that is not so ends it."""
    print(f"  lightning-intune {importlib.metadata.version('lightning-intune')}, torch {torch.__version__}")
    import_is_quick()
    every_module_imports()
    training_tunes_itself()
    process_lanes_work()
    what_needs_an_extra_names_it()
    console()


if __name__ == "__main__":
    main()
