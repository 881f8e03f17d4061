"""What is kept of a run's turns: JSON lines and widths in the run's folder, scalars and pictures in its loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning_intune.balance.bubble import BubbleStats
from lightning_intune.board import boards, write_hyperparameters, write_page, write_scalars, write_summary
from lightning_intune.control import Decision, DecisionLog
from lightning_intune.control.widths_file import save_widths
from lightning_intune.flow.loader import ElasticLoader
from lightning_intune.progress import logged_step
from lightning_intune.report import Findings, bubble_charts, bubble_scalars, scalars


@final
class Journal:
    """Writes one `fit` down. The training thread's; what goes to a folder or to TensorBoard is the first rank's.

    With `has_files` there are `intune_decisions.jsonl` and `intune_widths.yaml` in `run_folder`.
    """

    def __init__(self, trainer: Any, *, has_files: bool) -> None:
        self._trainer = trainer
        self._boards = boards(trainer.loggers) if trainer.is_global_zero else []
        self._file = None
        folder = run_folder(trainer) if has_files and trainer.is_global_zero else None
        if folder is not None:
            self._file = DecisionLog(folder / "intune_decisions.jsonl")

    def page(self, loaders: Mapping[str, ElasticLoader[Any]], balanced: list[str]) -> None:
        """The charts that TensorBoard shows of `loaders`; of those `balanced` over ranks their bubbles too."""
        charts = {name: bubble_charts(self._trainer.world_size, name) for name in balanced}
        for logger in self._boards:
            write_page(logger, {name: loader.stages for name, loader in loaders.items()}, charts)

    def line(self, name: str, decision: Decision) -> None:
        """A turn of the loader `name`, for the file."""
        if self._file is not None:
            self._file.write(decision, name)

    def scalars(self, name: str, decision: Decision) -> None:
        """The same for the loggers."""
        self._log(scalars(decision, name))

    def bubbles(self, name: str, stats: BubbleStats | None) -> None:
        """A window of steps of balanced ranks; None is none."""
        if stats is not None:
            self._log(bubble_scalars(stats, name))

    def end(
        self,
        found: Mapping[str, Decision | Findings],
        last: Mapping[str, Decision],
        *,
        widths: dict[str, int],
        settings: Mapping[str, Any],
    ) -> None:
        """What was `found` of each loader, the `last` turns beside the `settings`, and the best `widths`, if any."""
        if self._file is not None and widths:
            save_widths(self._file.folder / "intune_widths.yaml", widths)
        for logger in self._boards:
            for name, shown in found.items():
                write_summary(logger, name, shown, logged_step(self._trainer))
            write_hyperparameters(logger, settings, last)

    def _log(self, values: dict[str, float]) -> None:
        step = logged_step(self._trainer)
        for logger in self._trainer.loggers:
            if logger not in self._boards or not write_scalars(logger, values, step):
                logger.log_metrics(values, step=step)


def run_folder(trainer: Any) -> Path | None:
    """Where Lightning's own callbacks put a run's files: with its first logger's, without one in `default_root_dir`.

    In `default_root_dir` too where the logger's are on no disk of this machine; None where that is on none either,
    and in a `fast_dev_run`, which leaves nothing behind.
    """
    logger = trainer.loggers[0] if trainer.loggers else None
    folder = None if logger is None else getattr(logger, "log_dir", None)
    if logger is not None and folder is None:  # as ModelCheckpoint does it for W&B, MLflow and others
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = str(Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version))
    local = [str(each) for each in (folder, trainer.default_root_dir) if each is not None and "://" not in str(each)]
    return Path(local[0]) if local and not trainer.fast_dev_run else None
