"""Draw what a run's tuner did, from its `intune_decisions.jsonl`: the picture of README.md is one of the demo's.

python tools/draw_run.py                                                   # the last run of the demo, for README.md
python tools/draw_run.py runs/open_bandit/version_1/intune_decisions.jsonl docs/images/tuning_itself.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "open_bandit"
PICTURE = ROOT / "docs" / "images" / "tuning_itself.png"
INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = ("#2f5bb7", "#c2571a", "#2a7f62", "#8a4fa8", "#a8324a", "#5c6b1f")


def main() -> int:
    """Draw the file named first into the file named second."""
    if len(sys.argv) not in (1, 3):
        print("usage: python tools/draw_run.py [intune_decisions.jsonl OUT.png]", file=sys.stderr)
        return 2
    logs = sorted(RUNS.glob("version_*/intune_decisions.jsonl"), key=lambda log: log.stat().st_mtime)
    if len(sys.argv) == 1 and not logs:
        print(f"draw_run: there is no run in {RUNS}. Run `make demo` first.", file=sys.stderr)
        return 1
    source, target = map(Path, sys.argv[1:]) if len(sys.argv) == 3 else (logs[-1], PICTURE)
    turns = [json.loads(line) for line in source.read_text().splitlines()]
    if not turns:
        print(f"draw_run: '{source}' holds no turn: the run was shorter than one.", file=sys.stderr)
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    figure(turns).savefig(target, dpi=110, facecolor="white")
    print(f"draw_run: {len(turns)} turns into {target}")
    return 0


def figure(turns: list[dict[str, Any]]) -> Any:
    """Rate, waiting and widths over the seconds of the run."""
    from matplotlib.figure import Figure

    seconds = [turn["time_s"] - turns[0]["time_s"] + turns[0]["turn_s"] for turn in turns]
    drawn = Figure(figsize=(9, 6.2), layout="constrained")
    rate, wait, width = drawn.subplots(3, 1, sharex=True, height_ratios=[3, 1.6, 2.4])
    rate.plot(seconds, [turn["samples_per_s"] / 1e3 for turn in turns], color=COLOURS[0], linewidth=2)
    wait.plot(seconds, [100 * turn["wait_share"] for turn in turns], color=COLOURS[1], linewidth=2)
    for colour, stage in zip(COLOURS, turns[0]["widths"], strict=False):
        widths = [turn["widths"][stage] for turn in turns]
        width.step(seconds, widths, where="post", color=colour, linewidth=2, label=stage)
    _dress(rate, "thousand samples/s", "what the model was fed")
    _dress(wait, "% of the time", "the trainer waits for data")
    _dress(width, "workers", "width of each stage, set by the tuner")
    width.yaxis.get_major_locator().set_params(integer=True)
    wait.set_ylim(0, 100)
    width.set_ylim(top=1.3 * max(max(turn["widths"].values()) for turn in turns))
    width.legend(frameon=False, loc="upper left", ncols=3, labelcolor=INK)
    width.set_xlabel("seconds of training", color=MUTED)
    return drawn


def _dress(axes: Any, unit: str, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel(unit, color=MUTED, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


if __name__ == "__main__":
    sys.exit(main())
