"""The bubble by method, as a picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def draw(figures: dict[str, Any], path: Path) -> str:
    """Write the picture, and say where; or say what is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        return "not drawn: install `lightning-intune[plots]` (matplotlib)"
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=[3, 1], layout="constrained")
    settings, methods = list(figures["planned"]), list(next(iter(figures["planned"].values())))
    wide = 0.8 / (len(methods) + 1)
    for number, method in enumerate([*methods, "reservoir"]):
        values = [
            figures["planned"][setting][method]["bubble"]
            if method != "reservoir"
            else figures["planned"][setting]["random"]["bubble"] * (1 - figures["reservoir"][setting]["cut"])
            for setting in settings
        ]
        places = [place + (number - len(methods) / 2) * wide for place in range(len(settings))]
        left.bar(places, [100 * max(value, 1e-8) for value in values], wide, label=method)
    left.set_yscale("log")
    left.set_ylim(1e-7, 100)
    left.set_xticks(range(len(settings)), ["sigma " + setting.replace("-", "\n") for setting in settings])
    left.set_ylabel("planned bubble, % of the ranks' time (log)")
    left.set_title("256 ranks x 512 samples, lognormal sigma and cost")
    left.legend(ncols=7, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    ranks = list(figures["measured"])
    for number, (key, label) in enumerate((("bubble_random", "as read"), ("bubble_ours", "balanced"))):
        places = [place + (number - 0.5) * 0.38 for place in range(len(ranks))]
        bars = right.bar(places, [100 * figures["measured"][rank][key] for rank in ranks], 0.36, label=label)
        right.bar_label(bars, fmt="%.1f")
    right.set_xticks(range(len(ranks)), [f"{rank} ranks" for rank in ranks])
    right.set_ylabel("measured bubble, % of the step")
    right.set_title("training over gloo, unequal shards", fontsize=10)
    right.legend(fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return str(path)
