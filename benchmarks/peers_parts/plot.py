"""The contest as a picture: a bar per engine, the roofline across."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_intune.errors import ConfigError


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of one workload's rates; ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--png needs matplotlib: pip install 'lightning-intune[plots]', or leave --png out."
        ) from error
    rates = {"ours": (figures["ours_rows_per_s"], figures["ours_rows_per_s_spread"])}
    rates |= {
        name: (peer["best_rows_per_s"], peer["best_rows_per_s_spread"]) for name, peer in figures["peers"].items()
    }
    names = sorted(rates, key=lambda name: rates[name][0])
    middle = [rates[name][0] / 1e3 for name in names]
    low = [(rates[name][0] - rates[name][1][0]) / 1e3 for name in names]
    high = [(rates[name][1][1] - rates[name][0]) / 1e3 for name in names]
    figure = Figure(figsize=(8, 0.6 * len(names) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#1f77b4" if name == "ours" else "#b0b7bf" for name in names]
    axes.barh(names, middle, xerr=[low, high], color=colours, capsize=3)
    axes.axvline(figures["roofline_rows_per_s"] / 1e3, color="black", linestyle="--", linewidth=1, label="roofline")
    axes.set_xlabel("thousand rows/s (median, least and most of the rounds)")
    axes.set_title(f"workload {figures['workload']}, {figures['machine']['cores']} cores")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
