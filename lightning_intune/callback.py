"""Between steps: show the meters to the tuner, let it turn the knobs, log what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_intune.balance.bubble import BubbleStats
from lightning_intune.balance.watch import BubbleWatch
from lightning_intune.bar import BarPart
from lightning_intune.control import Budget, Decision, Tuner, make_agent
from lightning_intune.control.agents import AgentName
from lightning_intune.control.reward import Objective
from lightning_intune.control.widths_file import load_widths
from lightning_intune.evaluations import Evaluations
from lightning_intune.exporter import Exporter
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.journal import Journal
from lightning_intune.progress import begin_resumed_epoch, follow
from lightning_intune.report import Findings, findings, table
from lightning_intune.tuned import TunedLoader, TunerSettings
from lightning_intune.tuned_loaders import TunedLoaders

_BUBBLE_HOOKS = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_train_batch_end")
_EMPTY_HOOKS = ("on_before_optimizer_step", "on_before_zero_grad")


@final
class InTuneCallback(Callback):
    """Tunes the stages of the Trainer's elastic loaders while it runs. Results do not change: widths move no data.

    Those of validation, test and prediction are tuned too, each by a tuner of its own, under the names `val`, `test`
    and `predict`; while one of them runs the others stand still, so that each has the whole budget.

    Args:
        agent: Who decides: `dqn` (the shipped Q-learning agent), `model` (its service-time model alone), or one of
            the baselines `static`, `even`, `greedy`, `hill`, `random`, `plain_dqn`.
        objective: `throughput`, or `no_stall`: the fewest workers that keep the trainer from waiting.
        turn_interval_s: Seconds of training between two decisions. `auto`: half a second, up to 2 s until the rate is
            known to 4 %, or turns cost less than 1 % of the time; 2 s once there is nothing left to gain, unless a
            change shows before.
        cpu_budget: CPUs the stages may use; None: what this process may (affinity, cpuset, cgroup quota). Its loaders
            share them by need, and so do the ranks of one host.
        memory_budget: Bytes this process and its children may hold, with the host's other ranks; None: 80 % of the
            found limit.
        warm_start: Widths by stage to begin with, as a former run's `callback.widths` gave them, or the path of the
            `intune_widths.yaml` which it wrote beside its decisions.
        log_decisions: Whether every turn is appended to `intune_decisions.jsonl`, and the best widths are written to
            `intune_widths.yaml` in the end: in the logger's folder, without a logger in the Trainer's
            `default_root_dir`.
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
        turn_interval_s: float | Literal["auto"] = "auto",
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
        self._training: dict[str, TunedLoader] = {}  # training's loaders, by name
        self._evaluations = Evaluations(self._tuned)
        self._bubbles: dict[str, BubbleWatch] = {}  # of training loaders whose batches are balanced over ranks
        self._log_decisions = log_decisions
        self._journal: Journal | None = None
        self.history: list[Decision] = []
        self._found: dict[str, Decision | Findings] = {}  # by loader, when training has ended
        self._bar: BarPart | None = None
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
        for kept in (self._tuned, self.history, self._found):
            kept.clear()
        self._training = {}
        self._take_up(trainer)
        if not self._training:
            rank_zero_warn(
                "InTuneCallback: the training data comes from no ElasticLoader, so there is nothing to tune. Use "
                "InTuneDataModule, or change one line: lightning_intune.elastic(your_dataloader)."
            )
        begin_resumed_epoch(trainer, [tuned.loader for tuned in self._training.values()])
        self._tuned.watch("val", trainer.val_dataloaders)  # so that the page of charts knows them
        self._journal = Journal(trainer, has_files=self._log_decisions)
        self._journal.page({name: tuned.loader for name, tuned in self._tuned.items()}, list(self._bubbles))
        bar: Any = trainer.progress_bar_callback
        if bar is not None and self._training:
            self._bar = BarPart(bar, lambda: self._last(self._training))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_up(trainer)  # the Trainer may have made new ones, as `reload_dataloaders_every_n_epochs` asks

    def _take_up(self, trainer: Trainer) -> None:
        """The loaders that training takes its batches from now."""
        names = [name for name in self._tuned.watch("", trainer.train_dataloader) if name is not None]
        known, self._training = self._training, {name: self._tuned[name] for name in names}
        for name, tuned in self._training.items():
            if tuned is not known.get(name):
                follow(tuned.loader, trainer)
                tuned.follow(partial(self._turned, name))
                tuned.resume()
        if known != self._training:
            watched = {name: BubbleWatch.find(tuned.loader.root) for name, tuned in self._training.items()}
            self._bubbles = {name: watch for name, watch in watched.items() if watch is not None}
            self._leave_out(_EMPTY_HOOKS if self._bubbles else _EMPTY_HOOKS + _BUBBLE_HOOKS)

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
        for name, watch in self._bubbles.items():
            self._journal_bubbles(name, watch.end())

    def _turned(self, name: str, decision: Decision) -> None:
        if self._journal is not None:
            self.history.append(decision)
            self._journal.line(name, decision)
            self._journal.scalars(name, decision)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, watch in self._bubbles.items():
            self._journal_bubbles(name, watch.settle())
        self._found = self._found_now()
        for tuned in self._training.values():
            tuned.leave()
            tuned.loader.shutdown()
        for name, found in self._found.items():
            has_turns = self._tuned[name].last is not None
            span = "its last turn" if has_turns else "this run, which was shorter than one turn"
            rank_zero_info(f"InTuneCallback: what {name or 'the loader'} did in {span}\n{table(found)}")
        if self._journal is not None:
            widths = self.widths if self._training else {}
            last = self._last(self._training)
            self._journal.end(self._found, last, widths=widths, settings=self._hyperparameters)

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
        self._end(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer)

    def _begin(self, split: str, trainer: Trainer, loaders: Any) -> None:
        if not trainer.sanity_checking:
            for tuned in self._training.values():
                tuned.pause()
            self._evaluations.begin(split, loaders)

    def _advance(self, split: str, place: int) -> None:
        turn = self._evaluations.advance(split, place)
        if turn is not None and self._journal is not None:
            self._journal.line(*turn)

    def _end(self, trainer: Trainer) -> None:
        if trainer.sanity_checking:
            return
        for name, decision in self._evaluations.end().items():
            if self._journal is not None:
                self._journal.scalars(name, decision)
        for tuned in self._training.values():
            tuned.resume()

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
        fresh = {"_training": {}, "_bubbles": {}, "_journal": None, "_bar": None}
        return {**kept, **fresh, "_evaluations": Evaluations(self._tuned)}

    def _loaders(self) -> dict[str, ElasticLoader[Any]]:
        return {name or "train": tuned.loader for name, tuned in self._tuned.items()}

    def _shutdown(self) -> None:
        """Leave nothing running: workers, the exporter's server, our part of the progress bar."""
        for tuned in self._tuned.values():
            tuned.leave()
            tuned.loader.shutdown()
        if self._exporter is not None:
            self._exporter.stop()
        if self._bar is not None:
            self._bar.remove()
            self._bar = None
        self._leave_out(())

    def _leave_out(self, hooks: Iterable[str]) -> None:
        """Spare every step the calls of `hooks`: they are many, and Lightning makes those of callables only."""
        for hook in (*_EMPTY_HOOKS, *_BUBBLE_HOOKS):
            self.__dict__.pop(hook, None)
        for hook in hooks:
            self.__dict__[hook] = None

    # ---- what is shown ----

    def _last(self, names: Iterable[str]) -> dict[str, Decision]:
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

    def _journal_bubbles(self, name: str, stats: BubbleStats | None) -> None:
        if self._journal is not None:
            self._journal.bubbles(name, stats)
