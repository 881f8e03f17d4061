"""Our flow beside what people use today, on the same functions and files: rows/s, CPU, memory, in paired rounds.

Every peer is swept over widths (and its own tuner) and takes part at its best setting; ours starts at width 1 and
tunes itself during its warm-up, which `seconds_to_95pct` accounts for. Each run is a process of its own. The
roofline is the machine's cores over the CPU seconds per row of a plain loop. Peers come with the extra `[bench]`; one
that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peers_parts.contest import Contest
from benchmarks.peers_parts.engines import PEERS
from benchmarks.result import machine

WORKLOADS = ("local", "remote", "udf")


def main() -> None:
    """Parse, run one workload, print a table and the JSON object last."""
    names = [engine.name for engine in PEERS]
    parser = argparse.ArgumentParser(description="Our flow beside DataLoader, torchdata, SPDL, Grain, tf.data, Ray.")
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="local",
        help="local: page cache; remote: 20 ms (simulated) per read; udf: a pure-Python tokeniser per row",
    )
    parser.add_argument("--engines", nargs="+", choices=names, default=names, help="peers that take part")
    parser.add_argument("--quick", action="store_true", help="end within 60 s on 2 cores; same keys, wider spread")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--png", type=Path, help="draw the rates here (needs the extra [plots])")
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "quick": args.quick}
    console = Console(stderr=True, highlight=False)
    figures |= Contest(args.workload, quick=args.quick, say=console.print).run(args.engines)
    print(table(figures))
    if args.png is not None:
        from benchmarks.peers_parts.plot import draw

        draw(figures, args.png)
    if args.json:
        print(json.dumps(figures))


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    ours = figures | {"best_rows_per_s": figures["ours_rows_per_s"]}
    rows = sorted([("ours", ours), *figures["peers"].items()], key=lambda row: row[1]["best_rows_per_s"], reverse=True)
    lines = [
        f"workload {figures['workload']}: {figures['runs']} rounds, roofline "
        f"{figures['roofline_rows_per_s']:,.0f} rows/s, ours at {figures['roofline_share']:.0%} of it, "
        f"95 % of its rate after {figures['seconds_to_95pct']:.1f} s",
        "",
        "| engine | setting | rows/s | CPU s per million rows | peak PSS MiB | ours / it |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, row in rows:
        ratio = figures["ours_rows_per_s"] / row["best_rows_per_s"]
        lines.append(
            f"| {name} | {row['setting']} | {row['best_rows_per_s']:,.0f} | {row['cpu_s']:.2f} "
            f"| {row['peak_pss_mb']:,.0f} | {ratio:.2f} |"
        )
    lines += [f"\nleft out or failed: {name}: {why}" for name, why in figures["failures"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
