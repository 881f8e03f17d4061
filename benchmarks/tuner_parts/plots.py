"""Throughput over turns of every live pipeline, our agent beside its rivals, as PNG."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def missing() -> str | None:
    """What to do about a missing matplotlib; None where pictures can be drawn."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return "no pictures will be drawn: matplotlib is missing. pip install 'lightning-intune[plots]'"


def draw(raw: dict[str, Any], folder: Path) -> list[str]:
    """One picture per pipeline; the names of the files. None without matplotlib (see `missing`)."""
    if missing() is not None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    for name, found in raw.items():
        figure, axes = pyplot.subplots(figsize=(7, 4))
        best = found["best_rate"]
        for agent, run in found["runs"].items():
            rates = [decision.samples_per_s / best for decision in run.decisions]
            is_ours = agent == "dqn"
            axes.plot(
                range(len(rates)), rates, label="dqn (ours)" if is_ours else agent, zorder=3 if is_ours else 2,
                color="black" if is_ours else None, linewidth=2.4 if is_ours else 1.0,
            )  # fmt: skip
        axes.axhline(1.0, color="grey", linestyle="--", linewidth=1.0, label="best static widths")
        title = f"{name}: best static widths {list(found['sweep'].best)}, {best:.0f} batches/s"
        axes.set(
            title=title, xlabel="turn (the first is at width 1)", ylabel="throughput over best static", ylim=(0, None)
        )
        axes.legend(fontsize=7, loc="lower right")
        path = folder / f"tuner_{name}.png"
        figure.savefig(path, dpi=110, bbox_inches="tight")
        pyplot.close(figure)
        written.append(path.name)
    return written
