"""Choose both models' settings on the training days, and show them side by side on the two days after."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the real imports take seconds, and a reader wants to see a line before them
    from rich.table import Table

    from examples.hammock.quality import Floats, Quality

Fit = Callable[..., Any]
Settings = dict[str, Any]

HAMMOCK = [
    {"num_hidden": num_hidden, "ridge": ridge, "epochs": epochs}
    for num_hidden in (8, 32)
    for ridge in (1e-4, 1e-3)
    for epochs in (1, 3)
]
BOOSTING = [
    {"num_trees": num_trees, "num_leaves": num_leaves, "learning_rate": learning_rate}
    for num_trees in (5, 20, 60)
    for num_leaves in (3, 15)
    for learning_rate in (0.02, 0.1)
]


def main() -> None:
    """Run the comparison on the whole data; it is fetched into `.data/` where it is not there."""
    print("hammock: a quantised two-layer network beside gradient boosting, 60,000 real impressions", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from examples.open_bandit.data import prepare

    folder = prepare()
    print("loading torch and Lightning ...", flush=True)
    show(folder)


def show(folder: Path, *, hammocks: Sequence[Settings] = HAMMOCK, boostings: Sequence[Settings] = BOOSTING) -> None:
    """Compare on `folder`/train and `folder`/val, and print the table."""
    from rich.console import Console

    from examples.hammock.quality import quality
    from examples.hammock.rivals import boosting, clicks, hammock

    train, test = sorted((folder / "train").glob("*.parquet")), sorted((folder / "val").glob("*.parquet"))
    labels, base_rate = clicks(test), float(clicks(train).mean())
    base = labels * 0 + base_rate
    found: dict[str, tuple[Floats, Settings, float]] = {}
    for name, fit, candidates in (("Hammock", hammock, hammocks), ("gradient boosting", boosting, boostings)):
        settings = chosen(name, fit, candidates, train)
        began_s = time.monotonic()
        found[name] = fit(train, test, **settings), settings, time.monotonic() - began_s
    judged = {name: quality(values, base, labels) for name, (values, _, _) in found.items()}
    between = quality(found["Hammock"][0], found["gradient boosting"][0], labels)
    console = Console()
    console.print(table(judged, {name: seconds for name, (_, _, seconds) in found.items()}, base, labels))
    for name, (_, settings, _) in found.items():
        console.print(f"{name}: {', '.join(f'{key}={value}' for key, value in settings.items())}", highlight=False)
    console.print(verdict(between), highlight=False)


def chosen(name: str, fit: Fit, candidates: Sequence[Settings], train: Sequence[Path]) -> Settings:
    """The settings with the least log loss on the last two training days, each predicted from those before it."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from examples.hammock.quality import log_losses
    from examples.hammock.rivals import clicks

    losses = []
    for settings in track(
        candidates, f"settings of {name}", console=Console(stderr=True), disable=not sys.stderr.isatty()
    ):
        parts = [log_losses(fit(train[:day], [train[day]], **settings), clicks([train[day]])) for day in (-2, -1)]
        losses.append(float(np.concatenate(parts).mean()))
    return candidates[int(np.argmin(losses))]


def table(judged: dict[str, Quality], seconds: dict[str, float], base: Floats, labels: Floats) -> Table:
    """Both models, and the base rate, on the days that nobody has seen."""
    from rich.table import Table

    from examples.hammock.quality import log_losses

    title = f"29 and 30 November: {len(labels):,} rows, {int(labels.sum())} clicks"
    shown = Table("model", "log loss", "gain on base rate", "AUC", "fit", title=title)
    shown.caption = "nats; gains in millionths of a nat; in brackets 95 % intervals, by a bootstrap over rows"
    shown.add_row("base rate", f"{log_losses(base, labels).mean():.5f}", "", "0.500", "")
    for name, of in judged.items():
        low, gain, high = (1e6 * nats for nats in of.gain)
        auc_low, auc, auc_high = of.auc
        shown.add_row(
            name,
            f"{of.log_loss:.5f}",
            f"{gain:+.0f} ({low:+.0f} to {high:+.0f})",
            f"{auc:.3f} ({auc_low:.3f} to {auc_high:.3f})",
            f"{seconds[name]:.1f} s",
        )
    return shown


def verdict(between: Quality) -> str:
    """What may be said of the two, in one sentence; `between` is Hammock beside boosting."""
    low, gain, high = (1e6 * nats for nats in between.gain)
    interval = f"Hammock's gain on boosting {gain:+.0f} millionths of a nat, 95 % interval {low:+.0f} to {high:+.0f}"
    if low > 0:
        return f"Hammock is better here ({interval})."
    if high < 0:
        return f"Gradient boosting is better here ({interval})."
    return f"So few clicks cannot tell the two apart ({interval})."


if __name__ == "__main__":
    main()
