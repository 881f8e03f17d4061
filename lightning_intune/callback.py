"""Between steps: show the meters to the tuner, let it turn the knobs, log what it did."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_intune.balance.bubble import BubbleStats
from lightning_intune.balance.watch import BubbleWatch
from lightning_intune.board import boards, write_hyperparameters, write_page, write_summary
from lightning_intune.control import Budget, Decision, DecisionLog, Tuner, make_agent
from lightning_intune.control.agents import AgentName
from lightning_intune.control.reward import Objective
from lightning_intune.control.widths_file import load_widths, save_widths
from lightning_intune.datamodule import follow
from lightning_intune.exporter import Exporter
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.report import Findings, bubble_charts, bubble_scalars, findings, scalars, table
from lightning_intune.tuned import TunerSettings
from lightning_intune.tuned_loaders import TunedLoaders


@final
class InTuneCallback(Callback):
    """Tunes the stages of the Trainer's elastic loaders while it runs. Results do not change: widths move no data.

    Those of validation, test and prediction are tuned too, each by a tuner of its own, under the names `val`, `test`
    and `predict`; while one of them runs the others stand still, so that each has the whole budget.

    Args:
        agent: Who decides: `dqn` (the shipped Q-learning agent), `model` (its service-time model alone), or one of
            the baselines `static`, `even`, `greedy`, `hill`, `random`, `plain_dqn`.
        objective: `throughput`, or `no_stall`: the fewest workers that keep the trainer from waiting.
        turn_interval_s: Seconds of training between two decisions, or `auto` to let the noise decide.
        cpu_budget: CPUs the stages may use; None: what this process may (affinity, cpuset, cgroup quota). Its loaders
            share them by need, and so do the ranks of one host.
        memory_budget: Bytes this process and its children may hold, with the host's other ranks; None: 80 % of the
            found limit.
        warm_start: Widths by stage to begin with, as a former run's `callback.widths` gave them, or the path of the
            `intune_widths.yaml` which it wrote beside its decisions.
        log_decisions: Whether every turn is also appended to `intune_decisions.jsonl` in the run's folder.
        weights: A policy file for `dqn` or `plain_dqn`; None: the shipped one.
        seed: Of the agent's exploration; a whole number, 0 or more.
        metrics_address: `host:port` at which Prometheus, or OpenTelemetry's collector, may ask for the stages' meters
            while the run lasts, as `127.0.0.1:9400`; ranks of one machine take one port after the other. None: no
            port is opened. Needs `pip install 'lightning-intune[metrics]'`.

    After `fit`, `history` holds the decisions about the training loaders and `widths` the best widths found.

    """

    def __init__(
        self,
        agent: AgentName = "dqn",
        objective: Objective = "throughput",
        turn_interval_s: float | Literal["auto"] = 0.5,
        cpu_budget: float | None = None,
        memory_budget: int | None = None,
        warm_start: dict[str, int] | str | None = None,
        log_decisions: bool = True,
        weights: str | None = None,
        seed: int = 0,
        metrics_address: str | None = None,
    ) -> None:
        super().__init__()
        self._settings = TunerSettings(
            new_agent=partial(make_agent, agent, weights=weights, seed=seed),
            budget=Budget(cpus=cpu_budget, memory_limit_bytes=memory_budget),
            objective=objective,
            turn_interval_s=turn_interval_s,
            seed=seed,
        )
        # A wrong name or file shows here, not after the data is loaded; so does what a tuner of no stages refuses.
        Tuner(agent=self._settings.new_agent(), knobs=[], objective=objective, turn_interval_s=turn_interval_s)
        self._exporter = None if metrics_address is None else Exporter(metrics_address)
        warm_start = load_widths(Path(warm_start)) if isinstance(warm_start, str) else warm_start
        self._tuned = TunedLoaders(self._settings, warm_start)
        self._training: list[str] = []  # the names of training's loaders
        self._places: dict[str, list[str | None]] = {}  # those of an evaluation's, in order; None: not elastic
        self._bubbles: dict[str, BubbleWatch] = {}  # of training loaders whose batches are balanced over ranks
        self._running: str | None = None  # the loader that an evaluation takes its batches from
        self._log_decisions = log_decisions
        self._file: DecisionLog | None = None
        self.history: list[Decision] = []
        self._unlogged: dict[str, Decision] = {}  # the last of an evaluation's loaders, by name
        self._found: dict[str, Decision | Findings] = {}  # by loader, when training has ended
        self._bar: Any = None
        self._hyperparameters: dict[str, Any] = {
            "agent": agent,
            "objective": objective,
            "turn_interval_s": str(turn_interval_s),
            "seed": seed,
        }

    @property
    def widths(self) -> dict[str, int]:
        """The best widths found, by stage, those of several loaders as `loader/stage`; the next run's `warm_start`."""
        return self._tuned.widths

    def report(self) -> str:
        """The last turn of each loader, or a run shorter than one: its stages, what limits, what to do next."""
        found: Mapping[str, Decision | Findings] = self._found or self._last(list(self._tuned))
        texts = [f"{name}\n{table(shown)}" if name else table(shown) for name, shown in found.items()]
        return "\n\n".join(texts) or "No turn was measured: the run was shorter than one turn."

    # ---- training ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for kept in (self._tuned, self.history, self._found, self._unlogged):
            kept.clear()
        self._training = [name for name in self._tuned.watch("", trainer.train_dataloader) if name is not None]
        for name in self._training:
            follow(self._tuned[name].loader, trainer)
            self._tuned[name].resume()
        if not self._training:
            rank_zero_warn(
                "InTuneCallback: the training data comes from no ElasticLoader, so there is nothing to tune. Use "
                "InTuneDataModule, or change one line: lightning_intune.elastic(your_dataloader)."
            )
        _begin_resumed_epoch(trainer, [self._tuned[name].loader for name in self._training])
        self._tuned.watch("val", trainer.val_dataloaders)  # so that the page of charts knows them
        log_dir = trainer.log_dir  # a broadcast: every rank must ask
        if self._log_decisions and trainer.is_global_zero and log_dir is not None:
            self._file = DecisionLog(Path(log_dir) / "intune_decisions.jsonl")
        watched = {name: BubbleWatch.find(self._tuned[name].loader.root) for name in self._training}
        self._bubbles = {name: watch for name, watch in watched.items() if watch is not None}
        charts = {name: bubble_charts(trainer.world_size, name) for name in self._bubbles}
        for logger in _boards(trainer):
            write_page(logger, {name: tuned.loader.stages for name, tuned in self._tuned.items()}, charts)
        self._show_in(trainer.progress_bar_callback)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for watch in self._bubbles.values():
            watch.begin(batch_idx, pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        for watch in self._bubbles.values():
            watch.has_looked_forward()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for watch in self._bubbles.values():
            watch.has_looked_back()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name in self._training:
            decision = self._tuned[name].step()
            if decision is not None:
                self.history.append(decision)
                self._write(name, decision)
                self._log_scalars(trainer, name, decision)
        for name, watch in self._bubbles.items():
            self._log_bubbles(trainer, name, watch.end())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, watch in self._bubbles.items():
            self._log_bubbles(trainer, name, watch.settle())
        if self._file is not None and self._training:
            save_widths(self._file.folder / "intune_widths.yaml", self.widths)
        self._found = self._found_now()
        for name in self._training:
            self._tuned[name].loader.shutdown()
        for name, found in self._found.items():
            has_turns = self._tuned[name].last is not None
            span = "its last turn" if has_turns else "this run, which was shorter than one turn"
            rank_zero_info(f"InTuneCallback: what {name or 'the loader'} did in {span}\n{table(found)}")
        for logger in _boards(trainer):
            for name, found in self._found.items():
                write_summary(logger, name, found, trainer.global_step)
            write_hyperparameters(logger, self._hyperparameters, self._last(self._training))

    # ---- validation, test and prediction ----

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("val", trainer, trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer, trainer.test_dataloaders)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predict", trainer, trainer.predict_dataloaders)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("val", dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("test", dataloader_idx)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance("predict", dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("val", trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("test", trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("predict", trainer)

    def _begin(self, split: str, trainer: Trainer, loaders: Any) -> None:
        if trainer.sanity_checking:
            return
        for name in self._training:
            self._tuned[name].pause()
        self._places[split] = self._tuned.watch(split, loaders)
        self._run_only(next(iter(self._places[split]), None))

    def _advance(self, split: str, place: int) -> None:
        """A batch of the evaluation's loader number `place` was used; they are used one after the other."""
        places = self._places.get(split, [])
        name = places[place] if place < len(places) else None
        if name != self._running:
            self._run_only(name)
        decision = None if name is None else self._tuned[name].step()
        if decision is not None and name is not None:
            self._write(name, decision)
            self._unlogged[name] = decision

    def _end(self, split: str, trainer: Trainer) -> None:
        if trainer.sanity_checking:
            return
        self._run_only(None)
        for name, decision in self._unlogged.items():
            self._log_scalars(trainer, name, decision)
        self._unlogged.clear()
        for name in self._training:
            self._tuned[name].resume()

    def _run_only(self, name: str | None) -> None:
        if self._running is not None:
            self._tuned[self._running].pause()
        self._running = name
        if name is not None:
            self._tuned[name].resume()

    # ---- the run ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._exporter is not None:
            self._exporter.start(self._loaders, rank=trainer.global_rank, local_rank=trainer.local_rank)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shutdown()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._shutdown()

    def state_dict(self) -> dict[str, Any]:
        """What the tuners know: widths, weights, replay. Plain numbers and tensors."""
        return self._tuned.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Taken up by the tuners when their loaders come."""
        self._tuned.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        # Lightning hands `log` of the model to every callback: a copy would take the whole model along.
        kept = {name: value for name, value in self.__dict__.items() if name not in ("log", "log_dict")}
        return {
            **kept,
            "_training": [],
            "_bubbles": {},
            "_places": {},
            "_running": None,
            "_file": None,
            "_bar": None,
        }

    def _loaders(self) -> dict[str, ElasticLoader[Any]]:
        return {name or "train": tuned.loader for name, tuned in self._tuned.items()}

    def _shutdown(self) -> None:
        """Leave nothing running: workers, the exporter's server, our part of the progress bar."""
        for loader in self._loaders().values():
            loader.shutdown()
        if self._exporter is not None:
            self._exporter.stop()
        if self._bar is not None:
            self._bar.__dict__.pop("get_metrics", None)
            self._bar = None

    # ---- what is shown ----

    def _last(self, names: list[str]) -> dict[str, Decision]:
        turns = {name: self._tuned[name].last for name in names}
        return {name: turn for name, turn in turns.items() if turn is not None}

    def _found_now(self) -> dict[str, Decision | Findings]:
        found: dict[str, Decision | Findings] = {}
        for name, tuned in self._tuned.items():
            if tuned.last is not None:
                found[name] = tuned.last
            elif (whole := tuned.whole()).num_batches > 0:
                found[name] = findings(whole, self._settings.budget.read().cpus)
        return found

    def _write(self, name: str, decision: Decision) -> None:
        if self._file is not None:
            self._file.write(decision, name)

    def _log_scalars(self, trainer: Trainer, name: str, decision: Decision) -> None:
        values = scalars(decision, name)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=_step(trainer))

    def _log_bubbles(self, trainer: Trainer, name: str, stats: BubbleStats | None) -> None:
        if stats is not None:
            for logger in trainer.loggers:
                logger.log_metrics(bubble_scalars(stats, name), step=_step(trainer))

    def _show_in(self, bar: Any) -> None:
        """Let the progress bar show samples/s, data wait and widths, beside what it shows."""
        if bar is None or not self._training:
            return
        shown = bar.get_metrics

        def get_metrics(trainer: Any, pl_module: Any) -> dict[str, Any]:
            return {**shown(trainer, pl_module), **self._bar_metrics()}

        bar.get_metrics = get_metrics  # the bar's own hook for that, taken back in `_shutdown`
        self._bar = bar

    def _bar_metrics(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for name, decision in self._last(self._training).items():
            head = f"{name} " if name else ""
            values[f"{head}samples/s"] = f"{decision.samples_per_s:,.0f}"
            values[f"{head}data wait"] = f"{decision.wait_share:.0%}"
            values[f"{head}widths"] = "/".join(map(str, decision.asked.values()))
        return values


def _step(trainer: Trainer) -> int:
    """The step Lightning logs under now, as its own callbacks do.

    `global_step` is ahead of it at a batch's end and in validation, and counts every optimizer of manual optimisation:
    W&B drops what Lightning then logs under a lower step.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped  # pyright: ignore[reportPrivateUsage] - nothing public


def _boards(trainer: Trainer) -> list[Any]:
    return boards(trainer.loggers) if trainer.is_global_zero else []


def _begin_resumed_epoch(trainer: Trainer, loaders: list[ElasticLoader[Any]]) -> None:
    """Behind an epoch's end Lightning 2.6 resumes without loading a loader's state, and has called `iter` already.

    What it took then is of epoch 0. A DataModule of ours has told the epoch before; other loaders begin anew here.
    """
    fit = trainer.fit_loop
    fetcher = fit._data_fetcher  # pyright: ignore[reportPrivateUsage] - nothing public begins an epoch's loaders
    is_behind_an_epoch = fit.is_resuming and not fit.restarting
    is_wrong = any(loader.only_epoch is None and loader.epoch != trainer.current_epoch for loader in loaders)
    if is_behind_an_epoch and is_wrong and fetcher is not None:
        iter(fetcher)
