"""Throughput over turns of every live pipeline, our agent beside its rivals, as PNG."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_OURS = "dqn"
_LABELS = {
    "dqn": "dqn (ours)", "model": "model alone", "plain_dqn": "plain DQN", "greedy": "greedy bottleneck",
    "hill": "hill climbing", "even": "even split", "static": "static", "random": "random",
}  # fmt: skip
# Okabe and Ito's palette, which colour-blind readers can tell apart; an agent has one colour in all pictures.
_COLOURS = {
    "dqn": "#000000", "model": "#0072B2", "plain_dqn": "#CC79A7", "greedy": "#E69F00",
    "hill": "#009E73", "even": "#D55E00", "static": "#8C8C8C", "random": "#56B4E9",
}  # fmt: skip
_GREY = "#555555"


def missing() -> str | None:
    """What to do about a missing matplotlib; None where pictures can be drawn."""
    if importlib.util.find_spec("matplotlib") is not None:
        return None
    return "no pictures will be drawn: matplotlib is missing. pip install 'lightning-intune[plots]'"


def draw(raw: dict[str, Any], folder: Path) -> list[str]:
    """A picture of each pipeline and one of all; the names of the files. None without matplotlib (see `missing`)."""
    if missing() is not None:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    for name, found in raw.items():
        figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
        _panel(axes, name, found)
        axes.set(xlabel="turn (the first is at width 1)", ylabel="rate / best static rate")
        _legend(figure, axes)
        written.append(_save(figure, folder / f"tuner_{name}.png", pyplot))
    columns = min(4, len(raw))
    rows = -(-len(raw) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(3.6 * columns, 3.0 * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axes, (name, found) in zip(panels.ravel(), raw.items(), strict=False):
        _panel(axes, name, found)
    for axes in panels.ravel()[len(raw) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("turn (the first is at width 1)", fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("rate / best static rate", fontsize=8)
    _legend(figure, panels[0, 0], columns=len(_LABELS) // 2 + 1)
    written.append(_save(figure, folder / "tuner_all.png", pyplot))
    return written


def _panel(axes: Any, name: str, found: dict[str, Any]) -> None:
    best = found["best_rate"]
    axes.axhspan(0.95, 1.05, color="#009E73", alpha=0.12, linewidth=0, label="best static widths ± 5 %")
    axes.axhline(1.0, color="#009E73", linewidth=1.0)
    most, longest = 1.05, 1
    for agent in sorted(found["runs"], key=lambda agent: agent == _OURS):  # ours on top
        rates = [decision.samples_per_s / best for decision in found["runs"][agent].decisions]
        is_ours = agent == _OURS
        axes.plot(
            range(len(rates)), rates, label=_LABELS[agent], color=_COLOURS[agent], linewidth=2.4 if is_ours else 1.2,
            alpha=1.0 if is_ours else 0.85, marker="o" if is_ours else None, markersize=3.5,
        )  # fmt: skip
        most, longest = max([most, *rates]), max(longest, len(rates) - 1)
    widths = "/".join(map(str, found["sweep"].best))
    ours = "/".join(map(str, found["runs"][_OURS].widths)) if _OURS in found["runs"] else "-"
    axes.set_title(name.replace("_", " "), loc="left", fontsize=11, fontweight="bold", pad=18)
    text = f"best static {widths} ({best:.0f} batches/s), ours {ours}"
    axes.text(0.0, 1.02, text, transform=axes.transAxes, fontsize=7.5, color=_GREY)
    axes.set(ylim=(0, 1.06 * most), xlim=(-0.02 * longest, longest))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color=_GREY)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure: Any, axes: Any, columns: int | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(len(labels) - 1, 0, -1), 0]  # ours first, the band last
    place = "outside right center" if columns is None else "outside lower center"
    figure.legend(
        [handles[at] for at in order], [labels[at] for at in order], loc=place, ncols=columns or 1, fontsize=8,
        frameon=False,
    )  # fmt: skip


def _save(figure: Any, path: Path, pyplot: Any) -> str:
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path.name
