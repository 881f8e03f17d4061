"""Settings -> graph -> loader: the LightningDataModule that owns the flow's start, stop and state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import MethodType
from typing import Any, Literal, final

import torch.distributed as dist
from lightning.pytorch import LightningDataModule, Trainer
from torch import device as Device  # noqa: N812 - a class, whatever torch calls it

from lightning_intune.balance.feed import Feed, ShareToBatch
from lightning_intune.balance.settings import OFF, Balance
from lightning_intune.balance.units import Units
from lightning_intune.config import Schema
from lightning_intune.dedup.jagged import Batch
from lightning_intune.dedup.plan import DedupPlan
from lightning_intune.dedup.transform import DedupSparse
from lightning_intune.errors import ConfigError
from lightning_intune.flow.agree import EqualSteps
from lightning_intune.flow.batch import Rebatch
from lightning_intune.flow.communicator import GlooCommunicator
from lightning_intune.flow.elastic import ElasticMapper, ElasticPrefetcher
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.flow.node import Node
from lightning_intune.flow.on_error import RAISE, OnError, checked_policy
from lightning_intune.flow.row_shuffle import RowShuffle
from lightning_intune.flow.source import ParquetSource
from lightning_intune.flow.transform import ToBatch
from lightning_intune.meters import FlowStats
from lightning_intune.report import findings, table

Paths = str | list[str]

_STAGES = ("read", "transform", "prefetch")
_WINDOW_BATCHES = 4
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
        batch_size: Rows per batch and rank.
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
            `mix_row_groups` of them.
        on_error: What to do about row groups (`read`) or batches (`transform`) on which a stage fails, as in
            ``{"read": retry(3)}`` or ``{"read": skip(max_share=0.001, quarantine="bad.jsonl")}``, in YAML
            ``{read: {retries: 3}}``. Others are raised. Where something may be skipped, an epoch's number of batches is
            not known beforehand.
        balance: Training batches of equal cost, on one rank and over several; `batch_size` counts its units. See
            `lightning_intune.balance.Balance`.

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
    ) -> None:
        super().__init__()
        self.schema, self.batch_size, self.shuffle, self.seed = schema, batch_size, shuffle, seed
        self.paths: dict[str, Paths | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self._drop_last, self._max_workers, self._method = drop_last, max_workers, method
        self._mix_row_groups = mix_row_groups
        self._max_prefetch_bytes, self._filesystem = max_prefetch_bytes, filesystem
        self._filters = _as_tuples(filters)
        self._on_error = _checked_policies(on_error or {})
        # A group that names no feature shows here, not after the data is found.
        self._dedup, self._balance = dedup, balance
        self._sparse = None if dedup is None else DedupSparse(schema.sparse, DedupPlan.of(*dedup))
        self.widths = {"read": 1, "transform": 1, "prefetch": 2} | _checked_widths(widths or {}, max_workers)
        balance.check(schema)
        if balance.is_on and self._on_error.get("transform", RAISE).skip:
            raise ConfigError(
                "InTuneDataModule: on_error may not skip batches of 'transform' with balance=: ranks would no longer "
                "take the same steps. Retry there, or skip in 'read'."
            )
        if batch_size < 1:
            raise ConfigError(f"InTuneDataModule: batch_size={batch_size} makes no batch. Set it to 1 or more.")
        if mix_row_groups < 1:
            raise ConfigError(f"InTuneDataModule: mix_row_groups={mix_row_groups} holds no rows. Set it to 1 or more.")
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
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        shuffle = is_train and self.shuffle
        settings = self._balance if is_train else self._balance.unbalanced
        units = Units(settings, self.schema, self._dedup, paths, self._filesystem) if settings.is_on else None
        source = ParquetSource(
            paths,
            columns=self.schema.columns if units is None else units.columns,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            filesystem=self._filesystem,
            filters=self._filters,
        )
        (self.schema if units is None else units).validate(source.arrow_schema)
        num_batches = self._num_batches(source, are_rows=units is None or units.are_rows)
        if world_size > 1:
            _check_group()
        # What a filter lets through, or fails, shows in reading only.
        is_known = self._filters is None and not any(policy.skip for policy in self._on_error.values())
        if units is not None:
            return self._balanced(source, units, settings, is_known=is_known and units.are_rows, shuffle=shuffle)
        known = num_batches if is_known else None
        reader = source.reader(dictionaries=True, shuffle_rows=shuffle and self._sparse is None)
        node = self._cut(self._stage(source, reader, "read", "thread"), drop_last=self._drop_last, shuffle=shuffle)
        node = self._stage(node, ToBatch(self.schema, sparse=self._sparse), "transform", self._method)
        node = ElasticPrefetcher(node, self.widths["prefetch"], max_bytes=self._max_prefetch_bytes)
        if world_size > 1:
            num_items = None if known is None else [known] * world_size
            node = _equal_steps(node, "drop" if self._drop_last else "pad", num_items)
        return ElasticLoader(node, batch_size=self.batch_size, num_batches=known)

    def _balanced(
        self, source: ParquetSource, units: Units, settings: Balance, *, is_known: bool, shuffle: bool
    ) -> ElasticLoader[Batch]:
        """The graph whose batches are made of units that were dealt out by cost."""
        world_size, num_rows = source.world_size, source.num_rows
        by_rank = [num_rows // world_size + (rank < num_rows % world_size) for rank in range(world_size)]
        read = self._stage(source, units.reader(source, shuffle=shuffle), "read", "thread")
        feed = Feed(
            settings=settings, batch_size=self.batch_size, drop_last=self._drop_last, takes_over=self._takes_over
        )
        node, length = feed.node(
            self._cut(read, drop_last=False, shuffle=shuffle),
            source,
            units.measure(),
            world_size=world_size,
            num_rows=by_rank if is_known else None,
        )
        node = self._stage(node, ShareToBatch(units.to_batch()), "transform", self._method)
        node = ElasticPrefetcher(node, self.widths["prefetch"], max_bytes=self._max_prefetch_bytes)
        return ElasticLoader(node, batch_size=self.batch_size, num_batches=length)

    def _cut(self, tables: Node[Any], *, drop_last: bool, shuffle: bool) -> Node[Any]:
        """Tables of `batch_size` rows, mixed from several row groups where they are shuffled."""
        if shuffle and self._mix_row_groups > 1:
            num_tables = self._mix_row_groups
            return RowShuffle(tables, self.batch_size, num_tables=num_tables, seed=self.seed, drop_last=drop_last)
        return Rebatch(tables, self.batch_size, drop_last=drop_last)

    def _num_batches(self, source: ParquetSource, *, are_rows: bool) -> int:
        """Batches of an epoch before any filter. ConfigError where a rank has none."""
        size = self.batch_size
        num_batches = source.min_rank_rows // size if self._drop_last else -(-source.max_rank_rows // size)
        if (are_rows and num_batches == 0) or source.min_rank_rows == 0:
            raise ConfigError(
                f"InTuneDataModule: {source.num_rows} rows over {source.world_size} ranks do not fill one batch of "
                f"{size} each. Lower batch_size, or use fewer ranks."
            )
        return num_batches

    def _stage(self, source: Node[Any], function: Any, name: str, method: Any) -> ElasticMapper[Any]:
        width = self.widths[name]
        return ElasticMapper(
            source,
            function,
            width,
            method=method,
            name=name,
            min_workers=1,
            max_workers=self._max_workers,
            on_error=self._on_error.get(name, RAISE),
        )

    def state_dict(self) -> dict[str, Any]:
        """On how many ranks batches were balanced; where each stood is in the loader's state."""
        if not self._balance.is_on or self.trainer is None:
            return {}
        return {"ranks": self.trainer.world_size, "took_over": self._takes_over}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Get ready to read on in the shards of other ranks than there are now, before the loader is asked for."""
        ranks = 1 if self.trainer is None else self.trainer.world_size
        is_others = state_dict.get("took_over", False) or state_dict.get("ranks", ranks) not in (1, ranks)
        takes_over = self._balance.is_on and is_others
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


def follow(loader: ElasticLoader[Any], trainer: Trainer) -> None:
    """Let a training loader's state be that of the last batch trained on, and its epochs one where they overfit."""
    loader.follow(TrainerProgress(trainer))
    loader.only_epoch = 0 if getattr(trainer, "overfit_batches", 0) > 0 else None
    # Resuming behind an epoch's end, Lightning 2.6 loads no state and tells the epoch only after it has called `iter`.
    epochs: Any = trainer.fit_loop.epoch_progress  # its counters are declared less than they are
    loader.set_epoch(epochs.current.processed)


@final
class TrainerProgress:
    """How far a Trainer's `fit` has come in its epoch: what a checkpoint's loader position is made from.

    Lightning counts a batch as `ready` when it begins, as `processed` before `on_train_batch_end`, and goes on behind
    the processed ones after a restart. Its fetcher takes one batch ahead where there is no `len`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._fit = trainer, trainer.fit_loop
        self._batches: Any = self._fit.epoch_loop.batch_progress  # its counters are declared less than they are
        self._epochs: Any = self._fit.epoch_progress

    def num_fetched(self) -> int:
        fetcher = self._fit._data_fetcher  # pyright: ignore[reportPrivateUsage] - nothing public counts it
        return 0 if fetcher is None else fetcher.fetched

    def num_trained(self) -> int:
        return self._batches.current.processed

    def next_epoch(self) -> int | None:
        batches = self._batches.current
        is_last = self._batches.is_last_batch or batches.ready == self._trainer.num_training_batches
        if not is_last or batches.ready == 0 or batches.processed < batches.ready:
            return None
        return self._epochs.current.started


def _check_group() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "InTuneDataModule: the Trainer has several ranks, and torch.distributed is not initialized, so they cannot "
            "agree on their steps. Use a strategy that does that, as ddp or fsdp do."
        )


def _equal_steps(node: Node[Batch], mode: Literal["drop", "pad"], num_items: list[int] | None) -> EqualSteps[Batch]:
    """`node` with as many steps on every rank: last in the graph, where the ranks take their batches in step.

    The group is made here, where Lightning has brought every rank to the same place.
    """
    ranks = GlooCommunicator()
    ranks.open()
    return EqualSteps(node, mode=mode, window=_WINDOW_BATCHES, num_items=num_items, communicator=ranks)


def _as_tuples(filters: Any) -> Any:
    """YAML has no tuples, and pyarrow wants a condition (column, operator, value) to be one."""
    if not isinstance(filters, list):
        return filters
    is_condition = len(filters) == 3 and isinstance(filters[1], str)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(filters) if is_condition else [_as_tuples(member) for member in filters]


def _splits() -> tuple[str, ...]:
    return ("train", "val", "test", "predict")


def _checked_policies(policies: dict[str, OnError]) -> dict[str, OnError]:
    for name in policies:
        if name not in _STAGES[:2]:
            raise ConfigError(
                f"InTuneDataModule: on_error names the stage '{name}'; those with a function are "
                f"{', '.join(_STAGES[:2])}. Use those names."
            )
    return {name: checked_policy(f"InTuneDataModule: stage '{name}'", policy) for name, policy in policies.items()}


def _checked_widths(widths: dict[str, int], max_workers: int) -> dict[str, int]:
    if max_workers < 1:
        raise ConfigError(f"InTuneDataModule: max_workers={max_workers} leaves no worker. Set it to 1 or more.")
    for name, width in widths.items():
        if name not in _STAGES:
            raise ConfigError(
                f"InTuneDataModule: widths names the stage '{name}'; there are {', '.join(_STAGES)}. Use those names."
            )
        if not 1 <= width <= max_workers:
            raise ConfigError(
                f"InTuneDataModule: widths gives '{name}' {width} workers, outside [1, max_workers={max_workers}]. "
                "Set a width within that."
            )
    return widths
