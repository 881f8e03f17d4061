"""How cost grows: with stages, width on latency-bound work, the size of items, files, and rows streamed.

CPU microseconds count the trainer's thread, the workers and their processes. `share_of_ideal` is the rate over
width / 20 ms. `streamed` reads one epoch over hard links to one file and notes the memory held on the way.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.result import machine
from benchmarks.scale_parts.files import FILES, files, streamed
from benchmarks.scale_parts.stages import item_sizes, stages, widths


def main() -> None:
    """Parse, measure, print a table and the JSON object last."""
    parser = argparse.ArgumentParser(description="How cost grows with stages, width, item size, files and rows.")
    parser.add_argument("--quick", action="store_true", help="end within 60 s on 2 cores; same keys, wider spread")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--png", type=Path, help="draw the figures here (needs the extra [plots])")
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "quick": args.quick}
    figures |= measure(quick=args.quick)
    print(table(figures))
    if args.png is not None:
        from benchmarks.scale_parts.plot import draw

        draw(figures, args.png)
    if args.json:
        print(json.dumps(figures))


def measure(*, quick: bool) -> dict[str, Any]:
    """All keys of `scale`."""
    return {
        "runs": 1,
        "stages": stages(2_000 if quick else 20_000),
        "widths": widths(0.5 if quick else 3.0),
        "item_bytes": item_sizes((256 << 20) if quick else (2 << 30)),
        "files": files(20_000 if quick else 200_000, FILES[:-1] if quick else FILES),
        "streamed": streamed(2_000_000 if quick else 100_000_000),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| stages | CPU us an item | wall us an item |", "|--:|--:|--:|"]
    lines += [f"| {count} | {cost['cpu']:.1f} | {cost['wall']:.1f} |" for count, cost in figures["stages"].items()]
    lines += ["", "| width, 20 ms an item | items/s | of width / 20 ms | CPU us an item |", "|--:|--:|--:|--:|"]
    lines += [
        f"| {width} | {at['items_per_s']:,.0f} | {at['share_of_ideal']:.1%} | {at['cpu_us_per_item']:.1f} |"
        for width, at in figures["widths"].items()
    ]
    lines += [
        "",
        "| bytes an item | threads: CPU us | MB/s | processes: CPU us | MB/s |",
        "|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {int(size):,} | {at['thread_cpu_us']:,.1f} | {at['thread_mb_per_s']:,.1f} | {at['process_cpu_us']:,.1f} "
        f"| {at['process_mb_per_s']:,.1f} |"
        for size, at in figures["item_bytes"].items()
    ]
    lines += ["", "| files, the same rows | seconds to open | rows/s | CPU ms a file |", "|--:|--:|--:|--:|"]
    lines += [
        f"| {int(count):,} | {at['open_s']:.3f} | {at['rows_per_s']:,.0f} | {at['cpu_ms_per_file']:,.2f} |"
        for count, at in figures["files"].items()
    ]
    flow = figures["streamed"]
    held = ", ".join(f"{mib:,.0f} MiB after {int(rows):,}" for rows, mib in flow["rss_mib"].items())
    lines += ["", f"{flow['rows']:,} rows in one epoch at {flow['rows_per_s']:,.0f} rows/s: {held}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
