"""Between training steps: show the meters to the tuner, let it turn the knobs, log what it did."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_intune.control import Budget, Decision, DecisionLog, Tuner, make_agent
from lightning_intune.control.agents import AgentName
from lightning_intune.control.reward import Objective
from lightning_intune.control.widths_file import load_widths, save_widths
from lightning_intune.datamodule import follow
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.meters import FlowStats
from lightning_intune.report import Findings, findings, layout, limits, scalars, stage_figure, table

_log = logging.getLogger("lightning_intune")


@final
class InTuneCallback(Callback):
    """Tunes the stages of the Trainer's elastic loaders while it trains. Results do not change: widths move no data.

    Args:
        agent: Who decides: `dqn` (the shipped Q-learning agent), `model` (its service-time model alone), or one of
            the baselines `static`, `even`, `greedy`, `hill`, `random`, `plain_dqn`.
        objective: `throughput`, or `no_stall`: the fewest workers that keep the trainer from waiting.
        turn_interval_s: Seconds of training between two decisions, or `auto` to let the noise decide.
        cpu_budget: CPUs the stages may use; None: what this process may (affinity, cpuset, cgroup quota).
        memory_budget: Bytes this process and its children may hold; None: 80 % of the found limit.
        warm_start: Widths by stage to begin with, as a former run's `callback.widths` gave them, or the path of the
            `intune_widths.yaml` which it wrote beside its decisions.
        log_decisions: Whether every turn is also appended to `intune_decisions.jsonl` in the run's folder.
        weights: A policy file for `dqn` or `plain_dqn`; None: the shipped one.
        seed: Of the agent's exploration.

    After `fit`, `history` holds the decisions and `widths` the best widths found.

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
    ) -> None:
        super().__init__()
        self._new_agent: Callable[[], Any] = partial(make_agent, agent, weights=weights, seed=seed)
        self._new_agent()  # a wrong name or file shows here, not after the data is loaded
        self._budget = Budget(cpus=cpu_budget, memory_limit_bytes=memory_budget)
        self._objective: Objective = objective
        self._turn_interval_s: float | Literal["auto"] = turn_interval_s
        self._warm_start = load_widths(Path(warm_start)) if isinstance(warm_start, str) else warm_start
        self._log_decisions, self._seed = log_decisions, seed
        self._tuned: dict[str, tuple[_Meters, Tuner]] = {}
        self._loaded: dict[str, Any] = {}
        self._file: DecisionLog | None = None
        self.history: list[Decision] = []
        self._last: dict[str, Decision] = {}  # by loader
        self._found: dict[str, Decision | Findings] = {}  # likewise, when training has ended
        self._bar: Any = None
        self._settings = {"agent": agent, "objective": objective, "turn_interval_s": str(turn_interval_s), "seed": seed}
        # A tuner without stages: settings that make no sense raise ConfigError now.
        Tuner(agent=self._new_agent(), knobs=[], objective=objective, turn_interval_s=turn_interval_s)

    @property
    def widths(self) -> dict[str, int]:
        """The best widths found, by stage, or `loader/stage` with several loaders; the next run's `warm_start`."""
        return {
            f"{name}/{stage}" if name else stage: width
            for name, (_, tuner) in self._tuned.items()
            for stage, width in tuner.widths.items()
        }

    # ---- Lightning's hooks ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.history.clear()
        self._last.clear()
        self._found.clear()
        found = {name: _Meters(loader) for name, loader in _elastic(trainer.train_dataloader).items()}
        for meters in found.values():
            follow(meters.loader, trainer)
        self._tuned = {name: (meter, self._tuner(name, meter)) for name, meter in found.items()}
        if not self._tuned:
            rank_zero_warn(
                "InTuneCallback: the training data comes from no ElasticLoader, so there is nothing to tune. Use "
                "InTuneDataModule, or change one line: lightning_intune.elastic(your_dataloader)."
            )
        log_dir = trainer.log_dir  # a broadcast: every rank must ask
        if self._log_decisions and trainer.is_global_zero and log_dir is not None:
            self._file = DecisionLog(Path(log_dir) / "intune_decisions.jsonl")
        for logger in _tensorboards(trainer):
            for name, (meters, _) in self._tuned.items():
                logger.experiment.add_custom_scalars(layout(meters.loader.stages, name))
        self._show_in(trainer.progress_bar_callback)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, (meters, tuner) in self._tuned.items():
            decision = tuner.step(meters.read)
            if decision is not None:
                self._record(trainer, name, decision)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resume()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is not None and self._tuned:
            save_widths(self._file.folder / "intune_widths.yaml", self.widths)
        self._found = self._found_now()
        self._shutdown()
        for name, found in self._found.items():
            span = "its last turn" if name in self._last else "this run, which was shorter than one turn"
            rank_zero_info(f"InTuneCallback: what {name or 'the loader'} did in {span}\n{table(found)}")
            for logger in _tensorboards(trainer):
                _write_summary(logger, name, found, trainer.global_step)
        for logger in _tensorboards(trainer):
            self._write_hyperparameters(logger)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._shutdown()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.__dict__.pop("get_metrics", None)
            self._bar = None

    def state_dict(self) -> dict[str, Any]:
        """What the tuners know: widths, weights, replay. Plain numbers and tensors."""
        return {name: tuner.state_dict() for name, (_, tuner) in self._tuned.items()} or self._loaded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Taken up by the tuners when training starts."""
        self._loaded = state_dict

    def __getstate__(self) -> dict[str, Any]:
        # A copy (ddp_spawn, notebooks) tunes other loaders; what was learnt goes along.
        return {**self.__dict__, "_tuned": {}, "_file": None, "_bar": None, "_loaded": self.state_dict()}

    # ---- ours ----

    def _tuner(self, name: str, meters: _Meters) -> Tuner:
        head = f"{name}/" if name else ""
        warm_start = {
            stage.removeprefix(head): width
            for stage, width in (self._warm_start or {}).items()
            if not name or stage.startswith(head) or "/" not in stage
        }
        tuner = Tuner(
            agent=self._new_agent(),
            knobs=meters.loader.knobs,
            budget=self._budget,
            objective=self._objective,
            turn_interval_s=self._turn_interval_s,
            clock=meters.clock,
            rng=np.random.default_rng(self._seed),
            warm_start=warm_start or None,
        )
        if name in self._loaded:
            try:
                tuner.load_state_dict(self._loaded[name])
            except (KeyError, ValueError, TypeError) as error:
                _log.warning(
                    "InTuneCallback: the checkpoint's tuner state does not fit (%s); tuning starts anew", error
                )
        return tuner

    def report(self) -> str:
        """The last turn of each loader, or a run shorter than one: its stages, what limits, what to do next."""
        found: Mapping[str, Decision | Findings] = self._found or self._last
        texts = [f"{name}\n{table(shown)}" if name else table(shown) for name, shown in found.items()]
        return "\n\n".join(texts) or "No turn was measured: the run was shorter than one turn."

    def _found_now(self) -> dict[str, Decision | Findings]:
        found: dict[str, Decision | Findings] = {}
        for name, (meters, _) in self._tuned.items():
            if name in self._last:
                found[name] = self._last[name]
            elif (whole := meters.whole()).num_batches > 0:
                found[name] = findings(whole, self._budget.read().cpus)
        return found

    def _show_in(self, bar: Any) -> None:
        """Let the progress bar show samples/s, data wait and widths, beside what it shows."""
        if bar is None or not self._tuned:
            return
        shown = bar.get_metrics

        def get_metrics(trainer: Any, pl_module: Any) -> dict[str, Any]:
            return {**shown(trainer, pl_module), **self._bar_metrics()}

        bar.get_metrics = get_metrics  # the bar's own hook for that, taken back in `teardown`
        self._bar = bar

    def _bar_metrics(self) -> dict[str, str]:
        values: dict[str, str] = {}
        for name, decision in self._last.items():
            head = f"{name} " if name else ""
            values[f"{head}samples/s"] = f"{decision.samples_per_s:,.0f}"
            values[f"{head}data wait"] = f"{decision.wait_share:.0%}"
            values[f"{head}widths"] = "/".join(map(str, decision.asked.values()))
        return values

    def _write_hyperparameters(self, logger: Any) -> None:
        """What this run was set to and what came of it, beside the model's own on the hparams page."""
        if not self._last:
            return
        settings = {f"intune/{key}": value for key, value in self._settings.items()}
        metrics = {
            f"intune/final/{key}{'/' + name if name else ''}": float(getattr(decision, key))
            for name, decision in self._last.items()
            for key in ("samples_per_s", "wait_share", "roofline_share", "memory_bytes")
        }
        logger.log_hyperparams({**dict(logger.hparams), **settings}, metrics)

    def _record(self, trainer: Trainer, name: str, decision: Decision) -> None:
        self.history.append(decision)
        self._last[name] = decision
        values = scalars(decision, name)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if self._file is not None:
            self._file.write(decision)

    def _pause(self) -> None:
        for meters, _ in self._tuned.values():
            meters.pause()

    def _resume(self) -> None:
        for meters, _ in self._tuned.values():
            meters.resume()

    def _shutdown(self) -> None:
        for meters, _ in self._tuned.values():
            meters.loader.shutdown()


@final
class _Meters:
    """A loader's meters and a clock, which both stand still while training does (validation).

    So a turn goes on over validations, and an epoch shorter than a turn is tuned too.
    """

    def __init__(self, loader: ElasticLoader[Any]) -> None:
        self.loader = loader
        self._begun = loader.stats()
        self._lost_s = 0.0
        self._lost: FlowStats | None = None
        self._paused: tuple[float, FlowStats] | None = None

    def clock(self) -> float:
        """Seconds of training."""
        return time.monotonic() - self._lost_s

    def read(self) -> FlowStats:
        """The meters, less what was counted during pauses."""
        stats = self.loader.stats()
        return stats if self._lost is None else stats.since(self._lost)

    def whole(self) -> FlowStats:
        """The window from the start of training to here."""
        return self.read().since(self._begun)

    def pause(self) -> None:
        """Training stands still from here on."""
        if self._paused is None:
            self._paused = self.clock(), self.read()

    def resume(self) -> None:
        """Training goes on: `read` and `clock` continue where `pause` found them."""
        if self._paused is not None:
            (paused_s, before), self._paused = self._paused, None
            self._lost_s = time.monotonic() - paused_s
            self._lost = self.loader.stats().since(before)


def _tensorboards(trainer: Trainer) -> list[Any]:
    """The TensorBoard loggers of rank 0; by name, as pytorch_lightning's is another class."""
    found = [logger for logger in trainer.loggers if type(logger).__name__ == "TensorBoardLogger"]
    return found if trainer.is_global_zero else []


def _write_summary(logger: Any, name: str, found: Decision | Findings, step: int) -> None:
    head = f"intune/{name}/" if name else "intune/"
    logger.experiment.add_text(f"{head}summary", f"**Limits: {limits(found)}**\n\n{table(found)}", step)
    with contextlib.suppress(ImportError):  # a picture of the same; pip install 'lightning-intune[plots]'
        logger.experiment.add_figure(f"{head}stages", stage_figure(found), step)


def _elastic(loaders: Any) -> dict[str, ElasticLoader[Any]]:
    """The elastic loaders among what the Trainer was given, by name; "" for a single one."""
    found: dict[str, ElasticLoader[Any]] = {}

    def visit(name: str, value: Any) -> None:
        if isinstance(value, ElasticLoader):
            found[name] = value
        elif isinstance(value, Mapping):
            for key, member in value.items():
                visit(f"{name}{key}", member)
        elif isinstance(value, list | tuple):
            for place, member in enumerate(value):
                visit(f"{name}{place}", member)
        elif not isinstance(value, DataLoader) and hasattr(value, "iterables"):
            visit(name, value.iterables)  # Lightning's CombinedLoader

    visit("", loaders)
    return found
