"""What `make demo` runs: fetch, train, tune, and show in one table what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

REMOTE_LATENCY_S = 0.05
"""About what a cloud's object store takes to answer a read."""

if TYPE_CHECKING:  # the real imports take seconds, and a reader wants to see a line before them
    from rich.console import Console
    from rich.table import Table

    from examples.open_bandit.quality import LogLossGain
    from lightning_intune.control import Decision


def main() -> None:
    """Run the demo in the working folder; everything it writes lies in `.data/` and `runs/`."""
    print(
        "lightning-intune demo: 60,000 real impressions, TorchRec's DLRM, and a pipeline that tunes itself", flush=True
    )
    # The stages are the parallelism here; a thread pool below each of them would fight over the same cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from examples.open_bandit.data import FOLDER, prepare

    ready = (FOLDER / "parquet").exists()
    print("data: found in" if ready else "data: fetching obp==0.4.1 (6 MB) into", FOLDER, flush=True)
    data_folder = prepare()
    print("loading torch, TorchRec and Lightning ...", flush=True)
    show(data_folder)


def show(
    data_folder: Path,
    *,
    runs: Path = Path("runs"),
    max_epochs: int = 40,
    max_seconds: float = 45.0,
    remote_seconds: float = 25.0,
) -> None:
    """Train on `data_folder`, then on the same files as if they lay in an object store; print what came of it."""
    import numpy as np
    from rich.console import Console

    from examples.open_bandit.quality import click_rate, log_loss_gain, predict
    from examples.open_bandit.remote_storage import remote_storage
    from examples.open_bandit.train import train

    console, show_progress = Console(), sys.stdout.isatty()
    print("\n1. training on the local files", flush=True)
    run = train(data_folder, runs=runs, max_epochs=max_epochs, max_seconds=max_seconds, show_progress=show_progress)
    with run.data.val_dataloader() as batches:
        probabilities, clicks = predict(run.model, batches)
    rng = np.random.default_rng(0)
    gain = log_loss_gain(probabilities, clicks, click_rate(data_folder / "train"), rng=rng)
    _print_turns(console, run.tuner.history)
    console.print(quality_table(gain))
    console.print(gain.verdict())

    print(f"\n2. the same files {REMOTE_LATENCY_S * 1e3:.0f} ms away: a simulated object store", flush=True)
    remote = train(
        data_folder,
        runs=runs,
        max_epochs=10 * max_epochs,
        max_seconds=remote_seconds,
        filesystem=remote_storage(REMOTE_LATENCY_S),
        show_progress=show_progress,
    )
    _print_turns(console, remote.tuner.history)
    console.print("\nSee every turn:", style="bold")
    console.print(f"  {Path(sys.executable).parent / 'tensorboard'} --logdir {run.folder.parent}", soft_wrap=True)


def _print_turns(console: Console, history: Sequence[Decision]) -> None:
    from lightning_intune.report import advice

    if not history:
        console.print("The run was shorter than one turn of the tuner, so there is nothing to compare.")
        return
    console.print(turns_table(history))
    console.print(advice(typical(history)))


def last_quarter(history: Sequence[Decision]) -> Sequence[Decision]:
    """The turns that count as a run's end; at least one."""
    return history[-max(1, len(history) // 4) :]


def typical(history: Sequence[Decision]) -> Decision:
    """Of the last quarter the turn in the middle by the trainer's waiting: what is said of the end is said of it."""
    turns = sorted(last_quarter(history), key=lambda turn: turn.wait_share)
    return turns[len(turns) // 2]


def turns_table(history: Sequence[Decision]) -> Table:
    """The first turn of a run beside the mean of its last quarter."""
    from rich.table import Table

    first, last = history[:1], last_quarter(history)
    caption = "start: the first turn; end: the last quarter"
    table = Table("the pipeline", "start", "end", title=f"{len(history)} turns of the tuner", caption=caption)

    def row(name: str, value: Callable[[Decision], float], form: str) -> None:
        table.add_row(name, *(form.format(sum(map(value, part)) / len(part)) for part in (first, last)))

    row("samples/s", lambda turn: turn.samples_per_s, "{:,.0f}")
    row("trainer waits for data", lambda turn: turn.wait_share, "{:.1%}")
    row("share of the roofline", lambda turn: turn.roofline_share, "{:.0%}")
    for stage in history[0].widths:
        table.add_row(f"width of '{stage}'", str(history[0].widths[stage]), str(history[-1].widths[stage]))
    return table


def quality_table(gain: LogLossGain) -> Table:
    """The model's validation log loss beside the base rate's."""
    from rich.table import Table

    table = Table("29 and 30 November", "log loss, nats", title=f"{gain.num_rows:,} rows, {gain.num_clicks} clicks")
    table.add_row("base rate of the training days", f"{gain.base_rate:.5f}")
    table.add_row("DLRM", f"{gain.model:.5f}")
    return table


if __name__ == "__main__":
    main()
