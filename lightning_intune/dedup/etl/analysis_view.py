"""Shows an analysis: as a table in the terminal, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_intune.dedup.etl.analysis import Analysis
from lightning_intune.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

_MAX_BARS = 30


def print_analysis(found: Analysis, console: Console) -> None:
    """The whole in a few lines and a table, most sparing features first."""
    from rich.table import Table

    share = 100.0 * found.sampled_rows / max(1, found.num_rows)
    sessions = f"of {found.sampled_sessions:,} sessions, {found.samples_per_session:.2f} rows each"
    if not found.stored_bytes_per_row:
        sessions = "as they stand, for lack of --session: a value 'stays' if the row before has it too"
    console.print(
        f"{found.num_rows:,} rows in {found.files} files; looked at {found.sampled_rows:,} rows ({share:.0f} %) "
        f"{sessions}."
    )
    if found.rows_without_session:
        console.print(
            f"{found.rows_without_session:,} rows have no session and were left out; `cluster` can too: --drop-nulls."
        )
    table = Table(title="How often features repeat within sessions")
    for name in ("feature", "type"):
        table.add_column(name)
    for name in ("length", "stays", "shifts", "in batch", "model", "with shifts", "bytes/row", "spared"):
        table.add_column(name, justify="right")
    grouped = {name for group in found.groups for name in group.features}
    for one in sorted(found.features, key=lambda one: -one.saved_bytes_per_row):
        table.add_row(
            one.name,
            one.kind,
            f"{one.mean_length:.1f}",
            f"{one.stay_share:.1%}",
            f"{one.shift_share:.1%}",
            f"{one.measured_factor:.2f}x",
            f"{one.model_factor:.2f}x",
            f"{one.partial_factor:.2f}x",
            f"{one.bytes_per_row:.0f}",
            f"{one.saved_bytes_per_row:.0f}",
            style="green" if one.name in grouped else "dim",
        )
    console.print(table)
    for number, group in enumerate(found.groups, 1):
        names = ", ".join(group.features)
        console.print(f"group {number}: {names}: {group.factor:.2f}x, {group.saved_bytes_per_row:.0f} bytes/row spared")
    if not found.groups:
        console.print("No feature repeats whole often enough to be worth it.")
    shifting = [
        one for one in found.features if one.partial_factor >= 1.5 and one.partial_factor > 1.2 * one.model_factor
    ]
    for one in shifting:
        console.print(
            f"{one.name} moves on more than it changes: {one.partial_factor:.2f}x where its lists share a buffer"
        )
    console.print(
        f"Expected with these groups: {found.value_factor:.2f}x fewer bytes per batch ({found.bytes_per_row:.0f} -> "
        f"{found.bytes_per_row - found.saved_bytes_per_row:.0f} per row); a step {found.step_speedup:.2f}x as fast, if "
        f"{found.step_share:.0%} of it grows with the values (--step-share)."
    )
    if found.stored_bytes_per_row:
        stored = found.stored_bytes_per_row
        parts = [f"{name} {size:.1f} ({stored['shuffled'] / size:.2f}x)" for name, size in stored.items()]
        console.print(f"Stored, in bytes/row of the sample: {', '.join(parts)}.")
    if found.skipped:
        console.print(f"Not looked at, as no feature has such a type: {', '.join(found.skipped)}.")


def draw_analysis(found: Analysis, path: Path) -> None:
    """Write a PNG: factors by feature, and bytes per row before and after. ConfigError without the extra [plots]."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--png draws with matplotlib: pip install 'lightning-intune[plots]'.") from error
    shown = sorted(found.features, key=lambda one: -one.saved_bytes_per_row)[:_MAX_BARS][::-1]
    figure: Any = Figure(figsize=(11, 1.8 + 0.42 * len(shown)), layout="constrained")
    factors, sizes = figure.subplots(1, 2, sharey=True)
    places = range(len(shown))
    series = [
        ("distinct in a batch", "#1b6ca8", [one.measured_factor for one in shown]),
        ("model", "#8fbcdb", [one.model_factor for one in shown]),
        ("model, with shifted lists", "#e0a030", [one.partial_factor for one in shown]),
    ]
    for number, (label, colour, values) in enumerate(series):
        offset = 0.27 * (1 - number)
        factors.barh([place + offset for place in places], values, height=0.25, label=label, color=colour)
    factors.set_xscale("log")
    factors.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    factors.set_xlim(left=1.0)
    factors.set_yticks(list(places), [one.name for one in shown])
    factors.set_xlabel("rows per stored row (1: nothing repeats)")
    before = [one.bytes_per_row for one in shown]
    after = [min(one.bytes_per_row, one.bytes_per_row - one.saved_bytes_per_row) for one in shown]
    sizes.barh(places, before, height=0.6, label="every row", color="#d9d9d9")
    sizes.barh(places, after, height=0.6, label="deduplicated, where it pays", color="#1b6ca8")
    sizes.set_xlabel("bytes per row of a batch")
    for axes in (factors, sizes):
        # Above the bars: inside, it lies on the longest where that is the last.
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{found.samples_per_session:.1f} rows per session; with the proposed groups {found.value_factor:.2f}x fewer "
        f"bytes per batch (sample of {found.sampled_rows:,} rows)"
    )
    figure.savefig(path, dpi=120, format="png")
