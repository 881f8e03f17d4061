"""Our flow beside what people use today, on the same functions and files: rows/s, CPU, memory, in paired rounds.

Every peer is swept over shapes, widths and its own tuner, and takes part at its best setting; ours starts at width 1
and tunes itself during its warm-up. The warm-ups differ and both are printed: ours is 12 s, in which it tunes
(`seconds_to_95pct` says how long it needed), a peer's 1.5 s, as it comes with the best width known. Each run is a
process of its own, and its first batch must be the plain loop's. The roofline is the machine's cores over the CPU
seconds per row of a plain loop. Peers come with the extra `[bench]`; one that is not installed is named and left out.

Ours has the shape (a stage per function, or one for both) that was best at fixed widths, as the peers have theirs.
`ours_fixed` is ours at those fixed widths, which parts what the engine does from what the tuner does:
`ratio_..._fixed` are its ratios, `share_of_fixed` is tuned over fixed. The target figures are the tuned one's. In
`local`, `bare_threads` is the plain loop in as many threads as cores, without an engine: what the interpreter's lock,
and fresh pages for every batch, leave of the roofline; `share_of_bare_threads` is tuned over that. Peers that the
sweep found below 0.85 of the best one take part in two rounds, plain loop and bare threads in three, all others in all.

In `sessions` the peers read rows and ours the session layout, which holds the same batches; the peers then run on the
session layout too, so that `layout_gain` and `engine_gain` part what the headline is made of. LitData has no part: it
streams its own chunk format, so that it would not run the same functions over the same files.
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

WORKLOADS = ("local", "remote", "udf", "sessions", "train")


def main() -> None:
    """Parse, run one workload, print a table and the JSON object last."""
    names = [engine.name for engine in PEERS]
    parser = argparse.ArgumentParser(description="Our flow beside DataLoader, torchdata, SPDL, Grain, tf.data, Ray.")
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="local",
        help="local: page cache; remote: 20 ms (simulated) per read; udf: a pure-Python tokeniser per row; "
        "sessions: dedup and session layout for us; train: as `python -m benchmarks.train`",
    )
    parser.add_argument(
        "--engines", nargs="+", choices=names, help="peers that take part; all of them, less Ray (its start) in --quick"
    )
    parser.add_argument("--quick", action="store_true", help="end within 60 s on 2 cores; same keys, wider spread")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--png", type=Path, help="draw the rates here (needs the extra [plots])")
    args = parser.parse_args()
    if args.workload == "train":
        from benchmarks import train

        train.run(quick=args.quick, as_json=args.json)
        return
    figures: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "quick": args.quick}
    console = Console(stderr=True, highlight=False)
    engines = args.engines or [name for name in names if not (args.quick and name == "ray")]
    figures |= Contest(args.workload, quick=args.quick, say=console.print).run(engines)
    print(table(figures))
    if args.png is not None:
        from benchmarks.peers_parts.plot import draw

        draw(figures, args.png)
    if args.json:
        print(json.dumps(figures))


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    warm_up_s = figures["warm_up_s"]
    lines = [
        f"workload {figures['workload']}: {figures['runs']} rounds, roofline "
        f"{figures['roofline_rows_per_s']:,.0f} rows/s, ours at {figures['roofline_share']:.0%} of it, "
        f"95 % of its rate after {figures['seconds_to_95pct']:.1f} s. Warm-up: ours {warm_up_s['ours']:g} s, in which "
        f"it tunes itself from width 1; peers {warm_up_s['peers']:g} s, at their best swept setting.",
        "",
    ]
    if "bare_threads_rows_per_s" in figures:
        lines += [
            f"As many bare threads as cores, without an engine: {figures['bare_threads_rows_per_s']:,.0f} rows/s, "
            f"{figures['bare_threads_rows_per_s'] / figures['roofline_rows_per_s']:.0%} of the roofline: what the "
            "interpreter's lock, and fresh pages for every batch, leave of it. Ours, which uses memory again, over "
            "them, paired: "
            f"{figures['share_of_bare_threads']:.2f}x.",
            "",
        ]
    lines += [
        *rows(figures, "peers"),
    ]
    if "peers_session_layout" in figures:
        lines += ["", "The peers on the session layout:", "", *rows(figures, "peers_session_layout")]
    if "layout_gain" in figures:
        lines.append(f"\nthe layout gives {figures['layout_gain']:.2f}x, the engine {figures['engine_gain']:.2f}x")
    lines += [f"\nleft out or failed: {name}: {why}" for name, why in figures["failures"].items()]
    return "\n".join(lines)


def rows(figures: dict[str, Any], peers: str) -> list[str]:
    """Ours and those peers, the fastest first."""
    ours = figures | {"best_rows_per_s": figures["ours_rows_per_s"]}
    entries = [("ours", ours), *figures[peers].items()]
    if "ours_fixed" in figures:
        entries.append(("ours_fixed", figures["ours_fixed"]))
    entries.sort(key=lambda entry: entry[1]["best_rows_per_s"], reverse=True)
    lines = [
        "| engine | setting | rows/s | CPU s per million rows | peak PSS MiB | ours / it |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, row in entries:
        ratio = figures["ours_rows_per_s"] / row["best_rows_per_s"]
        lines.append(
            f"| {name} | {row['setting']} | {row['best_rows_per_s']:,.0f} | {row['cpu_s']:.2f} "
            f"| {row['peak_pss_mb']:,.0f} | {ratio:.2f} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
