"""Settings -> graph -> loader: the LightningDataModule that owns the flow's start, stop and state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from types import MethodType
from typing import Any, Literal, final

from lightning.pytorch import LightningDataModule
from torch import device as Device  # noqa: N812 - a class, whatever torch calls it

from lightning_intune.balance.settings import OFF, Balance
from lightning_intune.config import Schema
from lightning_intune.dedup.jagged import Batch
from lightning_intune.errors import ConfigError
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.flow.on_error import OnError
from lightning_intune.meters import FlowStats
from lightning_intune.pipeline import Paths, Pipeline, Place
from lightning_intune.progress import follow
from lightning_intune.report import findings, table

_OTHER_TRAINER = (
    "InTuneDataModule: this Trainer is pytorch_lightning's, which takes only its own classes for DataModules. Import "
    "Trainer and LightningModule from lightning.pytorch (the same code), or pass loaders: "
    "trainer.fit(model, data.train_dataloader(), data.val_dataloader())."
)


@final
class InTuneDataModule(LightningDataModule):
    """Parquet files as batches for training, through stages that a tuner can resize while they run.

    The stages are `read` (row groups to Arrow tables), `transform` (tables of `batch_size` rows to
    `Batch`) and `prefetch` (batches kept ready). All start at width 1 unless `widths` says otherwise;
    with `InTuneCallback` in the Trainer they are tuned from there.

    Args:
        schema: What the columns mean; see `lightning_intune.config.Schema`.
        train: Files, folders or globs of Parquet for `fit`.
        val: Those for the validation in `fit`, and for `validate`.
        test: Those for `test`.
        predict: Those for `predict`.
        batch_size: Rows per batch and rank; impressions, where the files' rows are sessions; what `balance` moves.
        shuffle: Whether training draws row groups, and rows within them, in a new order every epoch.
        seed: Of those orders, a whole number, 0 or more; the same seed gives the same batches at any width.
        mix_row_groups: From how many row groups at once a shuffled batch draws its rows; they are held in memory.
        drop_last: Whether an epoch's last batch is left out where it is short.
        widths: Workers by stage to start with, of `prefetch` batches, as in
            ``{"read": 2, "transform": 1, "prefetch": 4}``.
        max_workers: No stage grows beyond this many workers, nor `prefetch` beyond as many batches.
        method: Where `transform` runs: `thread`, or `process` for transforms that hold the GIL.
        max_prefetch_bytes: Bound on the bytes of batches kept ready; None bounds their number only.
        filesystem: Where the paths are: Arrow's or fsspec's; None for local paths and URIs.
        filters: Rows to keep, as ``[["day", ">=", 5]]`` or an Arrow expression; None keeps all. Row groups that cannot
            hold one are never read. An epoch's number of batches is not known beforehand then.
        dedup: Groups of sparse features that repeat together within sessions, as ``[["user", "history"]]``:
            `batch.sparse` is then an `InverseKeyedJaggedTensor`, each group's repeated rows stored, and transformed,
            once. Rows keep their order within a row group, so that sessions stay together; batches mix
            `mix_row_groups` of them. Files of the session layout (`lightning-intune cluster --layout sessions`) say so
            themselves: what is a session's own is then stored once without being named here.
        on_error: What to do about row groups (`read`) or batches (`transform`) on which a stage fails, as in
            ``{"read": retry(3)}`` or ``{"read": skip(max_share=0.001, quarantine="bad.jsonl")}``, in YAML
            ``{read: {retries: 3}}``. Others are raised. Where something may be skipped, an epoch's number of batches is
            not known beforehand.
        balance: Training batches of equal cost, on one rank and over several; `batch_size` counts its units. See
            `lightning_intune.balance.Balance`.
        pin_memory: Whether batches are put into page-locked memory and copied to the device ahead of the step, on a
            CUDA stream of their own, by a stage `to_device` at the end. `auto`: on a CUDA device. On a CPU `true` lets
            them pass: a checkpoint made in mid-epoch fits where this stage is or is not the same.

    Raises ConfigError at construction for settings that make no sense, and in `setup`, before any
    worker starts, for data that does not fit them.

    """

    def __init__(
        self,
        schema: Schema,
        train: Paths | None = None,
        val: Paths | None = None,
        test: Paths | None = None,
        predict: Paths | None = None,
        *,
        batch_size: int = 1024,
        shuffle: bool = True,
        seed: int = 0,
        mix_row_groups: int = 8,
        drop_last: bool = False,
        widths: dict[str, int] | None = None,
        max_workers: int = 64,
        method: Literal["thread", "process"] = "thread",
        max_prefetch_bytes: int | None = None,
        filesystem: Any = None,
        filters: Any = None,
        dedup: list[list[str]] | None = None,
        on_error: dict[str, OnError] | None = None,
        balance: Balance = OFF,
        pin_memory: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        self.paths: dict[str, Paths | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self._pipeline = Pipeline(
            schema=schema,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            mix_row_groups=mix_row_groups,
            drop_last=drop_last,
            widths=widths or {},
            max_workers=max_workers,
            method=method,
            max_prefetch_bytes=max_prefetch_bytes,
            filesystem=filesystem,
            filters=filters,
            dedup=dedup,
            on_error=on_error or {},
            balance=balance,
            pin_memory=pin_memory,
        )
        self.schema, self.shuffle, self.seed, self.widths = schema, shuffle, seed, dict(self._pipeline.widths)
        if all(paths is None for paths in self.paths.values()):
            raise ConfigError("InTuneDataModule: it has no data. Name Parquet files or folders in train, val or test.")
        self.loaders: dict[str, ElasticLoader[Batch]] = {}
        self._made: dict[str, FlowStats] = {}
        self._takes_over = False  # balanced batches from a checkpoint of another number of ranks
        self._hide_absent()

    def _hide_absent(self) -> None:
        for split, paths in self.paths.items():
            if paths is None:  # Lightning must find no hook of ours there, or it warns of an empty loader
                hook = f"{split}_dataloader"
                setattr(self, hook, MethodType(getattr(LightningDataModule, hook), self))

    def __getstate__(self) -> dict[str, Any]:
        # A bound method would be pickled by its name, which is our hook's.
        kept = {name: value for name, value in self.__dict__.items() if not isinstance(value, MethodType)}
        return {**kept, "loaders": {}}  # a copy (ddp_spawn, notebooks) builds its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hide_absent()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainer" and type(value).__module__.startswith("pytorch_lightning"):
            raise ConfigError(_OTHER_TRAINER)
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Batch]:
        # pytorch_lightning takes a DataModule that is not its own for a loader, and iterates over it.
        raise ConfigError(_OTHER_TRAINER)

    def __repr__(self) -> str:
        paths = ", ".join(f"{split}={paths!r}" for split, paths in self.paths.items() if paths is not None)
        return f"InTuneDataModule({paths}, batch_size={self.batch_size}, widths={self.widths})"

    def __str__(self) -> str:  # Lightning's iterates over every loader, and so starts its workers
        return repr(self)

    def setup(self, stage: str | None = None) -> None:
        """Check the data of every split that `stage` needs, and build its graph. Starts no worker."""
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage or "", (stage,) if stage else _splits())
        for split in wanted:
            paths = self.paths.get(split)
            if paths is not None and split not in self.loaders:
                self.loaders[split] = self._loader(paths, is_train=split == "train")
                self._made[split] = self.loaders[split].stats()

    def _loader(self, paths: Paths, *, is_train: bool) -> ElasticLoader[Batch]:
        known = replace(self._pipeline, schema=self.schema, shuffle=self.shuffle, seed=self.seed, widths=self.widths)
        if self.trainer is None:
            return known.loader(paths, Place(is_train=is_train))
        place = Place(
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            is_train=is_train,
            device=self.trainer.strategy.root_device,
            takes_over=self._takes_over,
        )
        return known.loader(paths, place)

    @property
    def batch_size(self) -> int:
        """Rows per batch and rank. Set to another number (as Lightning's Tuner does), loaders are made anew."""
        return self._pipeline.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        if batch_size != self._pipeline.batch_size:
            self._pipeline = replace(self._pipeline, batch_size=batch_size)
            self._shutdown()
            self.loaders.clear()

    def state_dict(self) -> dict[str, Any]:
        """On how many ranks batches were balanced; where each stood is in the loader's state."""
        if not self._pipeline.balance.is_on or self.trainer is None:
            return {}
        return {"ranks": self.trainer.world_size, "took_over": self._takes_over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Get ready to read on in the shards of other ranks than there are now, before the loader is asked for."""
        ranks = 1 if self.trainer is None else self.trainer.world_size
        is_others = state_dict.get("took_over", False) or state_dict.get("ranks", ranks) not in (1, ranks)
        takes_over = self._pipeline.balance.is_on and is_others
        if takes_over == self._takes_over:
            return
        self._takes_over = takes_over
        if "train" in self.loaders:
            del self.loaders["train"]
            self.setup("fit")

    def train_dataloader(self) -> ElasticLoader[Batch]:
        """The loader of `train`."""
        loader = self._split("train")
        if self.trainer is not None:
            follow(loader, self.trainer)
        return loader

    def val_dataloader(self) -> ElasticLoader[Batch]:
        """The loader of `val`."""
        return self._split("val")

    def test_dataloader(self) -> ElasticLoader[Batch]:
        """The loader of `test`."""
        return self._split("test")

    def predict_dataloader(self) -> ElasticLoader[Batch]:
        """The loader of `predict`."""
        return self._split("predict")

    def _split(self, split: str) -> ElasticLoader[Batch]:
        if split not in self.loaders:
            self.setup({"train": "fit", "val": "validate"}.get(split, split))
        return self.loaders[split]

    def report(self, cpus: float | None = None) -> str:
        """Every loader that ran: its stages, what limits, what to do next, as averages over the whole run.

        `cpus`: what the roofline is reckoned with; None: those this process may use.
        """
        texts: list[str] = []
        cpus = float(len(os.sched_getaffinity(0))) if cpus is None else cpus
        for split, loader in self.loaders.items():
            window = loader.stats().since(self._made[split])
            if window.num_batches > 0:
                texts.append(f"{split}\n{table(findings(window, cpus))}")
        return "\n\n".join(texts) or "No loader has run yet."

    def transfer_batch_to_device(self, batch: Any, device: Device, dataloader_idx: int) -> Any:
        """Lightning passes `non_blocking` to tensors only; a pinned `Batch` may be copied beside the compute too."""
        if isinstance(batch, Batch):
            return batch if device.type == "cpu" else batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's hook
        """Stop every worker: after a failure or Ctrl-C Lightning calls no `teardown` of a DataModule."""
        self._shutdown()

    def teardown(self, stage: str | None = None) -> None:
        """Stop every worker of every split."""
        self._shutdown()
        if stage is None:
            self.loaders.clear()

    def _shutdown(self) -> None:
        for loader in self.loaders.values():
            loader.shutdown()


def _splits() -> tuple[str, ...]:
    return ("train", "val", "test", "predict")
