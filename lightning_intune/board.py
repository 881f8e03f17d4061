"""What TensorBoard gets beside scalars: the page of charts, the summary, hyper-parameters with what came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_intune.control import Decision
from lightning_intune.report import DecisionLike, Findings, layout, limits, stage_figure, table

_FINAL = ("samples_per_s", "wait_share", "roofline_share", "memory_bytes")


def boards(loggers: Iterable[Any]) -> list[Any]:
    """The TensorBoard loggers among `loggers`; by name, as pytorch_lightning's is another class."""
    return [logger for logger in loggers if type(logger).__name__ == "TensorBoardLogger"]


def write_scalars(logger: Any, values: Mapping[str, float], step: int) -> bool:
    """All `values` as one event; False where `logger` has no writer known to take one, or names of its own.

    `log_metrics` makes an event of each, and beyond ten the training thread waits until some are on disk.
    """
    writer: Any = getattr(logger.experiment, "file_writer", None)
    if not type(writer).__module__.startswith("torch.utils.tensorboard") or getattr(logger, "_prefix", ""):
        return False
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - generated

    together = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    writer.add_summary(Summary(value=together), step)
    return True


def write_page(
    logger: Any, loaders: Mapping[str, Iterable[str]], more: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """One page of charts for all `loaders` (name -> stages): of several pages TensorBoard shows the first only.

    `more` (name -> charts) stand behind a loader's own.
    """
    page: dict[str, Any] = {}
    for name, stages in loaders.items():
        page |= {title: {**charts, **(more or {}).get(name, {})} for title, charts in layout(stages, name).items()}
    if page:
        logger.experiment.add_custom_scalars(page)


def write_summary(logger: Any, name: str, found: DecisionLike | Findings, step: int) -> None:
    """The end-of-fit table as text, and, where matplotlib is, the stages as a figure."""
    head = f"intune/{name}/" if name else "intune/"
    logger.experiment.add_text(f"{head}summary", f"**Limits: {limits(found)}**\n\n{table(found)}", step)
    with contextlib.suppress(ImportError):  # pip install 'lightning-intune[plots]'
        logger.experiment.add_figure(f"{head}stages", stage_figure(found), step)


def write_hyperparameters(logger: Any, settings: Mapping[str, Any], last: Mapping[str, Decision]) -> None:
    """What this run was set to and what came of it, beside the model's own on the hparams page."""
    if not last:
        return
    metrics = {
        f"intune/final/{key}{'/' + name if name else ''}": float(getattr(decision, key))
        for name, decision in last.items()
        for key in _FINAL
    }
    named = {f"intune/{key}": value for key, value in settings.items()}
    models = {
        key: value if isinstance(value, int | float | str) else str(value) for key, value in logger.hparams.items()
    }
    if not models:
        logger.log_hyperparams(named, metrics)
        return
    # TensorBoard keeps the first of a run's records, which is the model's own: ours goes into a run beside it.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(logger.log_dir) / "intune")) as writer:
        writer.add_hparams({**models, **named}, metrics, run_name=".")
