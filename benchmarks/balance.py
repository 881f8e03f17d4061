"""How much less ranks wait for each other: as planned for 256 ranks, and as measured on ranks that train.

`--quick` has fewer draws and steps. The plot `runs/balance.png` shows the planned bubble by method; it needs the extra
`[plots]`. The figure is ours: 1 - mean / max over ranks. FreeScale (arXiv 2604.24073), whence the idea comes, reports
90.3 % less exposed waiting, which is another quantity on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.balance_parts.measured import measured
from benchmarks.balance_parts.planned import planned, reservoirs
from benchmarks.balance_parts.plot import draw
from benchmarks.result import main

PLOT = Path("runs") / "balance.png"


def measure(quick: bool) -> dict[str, Any]:
    """All keys of `balance`."""
    runs = 3 if quick else 9
    figures: dict[str, Any] = {"runs": runs, "planned": planned(runs), "reservoir": reservoirs(1 if quick else 3)}
    steps, repeats = (32, 1) if quick else (64, 5)
    figures["measured"] = {str(ranks): measured(ranks, steps, repeats) for ranks in (2, 4)}
    figures["plot"] = draw(figures, PLOT)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'planned':>14}  {'method':>15}  {'bubble':>9}  {'cut':>9}  {'ms':>7}  {'moved':>6}"]
    for draw_name, methods in figures["planned"].items():
        for method, row in methods.items():
            lines.append(
                f"{draw_name:>14}  {method:>15}  {row['bubble']:9.3%}  {row['cut']:9.3%}  {row['plan_ms']:7.2f}  "
                f"{row['moved_share']:6.2%}"
            )
    for draw_name, row in figures["reservoir"].items():
        lines.append(
            f"reservoir {draw_name}: cut {row['cut']:.2%} at {row['ms_per_step']:.3f} ms/step, "
            f"{row['moved_share']:.2%} moved, delayed by at most {row['max_delay_steps']:.0f} steps"
        )
    for ranks, row in figures["measured"].items():
        lines.append(
            f"{ranks} ranks on {row['cores']} cores: bubble {row['bubble_random']:.1%} -> {row['bubble_ours']:.1%} "
            f"(cut {row['cut']:.1%}), samples/s {row['throughput_ratio']:.2f}x by CPU time, "
            f"{row['throughput_ratio_wall']:.2f}x by wall time"
        )
    lines.append(f"plot: {figures['plot']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__ or "", measure, table)
