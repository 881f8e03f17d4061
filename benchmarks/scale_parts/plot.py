"""The scaling figures as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_intune.errors import ConfigError


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write a PNG of four panels; ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "--png needs matplotlib: pip install 'lightning-intune[plots]', or leave --png out."
        ) from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = [
        ("stages", "cpu", "stages of width 1", "CPU us an item, all stages", 1.0),
        ("widths", "share_of_ideal", "width, 20 ms an item", "share of width / 20 ms", 1.0),
        ("item_bytes", "thread_cpu_us", "bytes of an item", "CPU us an item", 1.0),
        ("files", "rows_per_s", "files, the same rows", "thousand rows/s", 1e-3),
    ]
    for number, (key, value, x_label, y_label, scale) in enumerate(panels):
        axes = figure.add_subplot(2, 2, number + 1)
        points = figures[key]
        places = [int(place) for place in points]
        axes.plot(places, [points[str(place)][value] * scale for place in places], marker="o", label="threads")
        if key == "item_bytes":
            axes.plot(places, [points[str(place)]["process_cpu_us"] for place in places], marker="s", label="processes")
            axes.legend()
        axes.set_xscale("log", base=2 if key != "files" else 10)
        if key == "item_bytes":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)  # a flat line is not to lie on the frame
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
