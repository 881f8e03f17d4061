"""The console commands `analyze`, `cluster` and `synth`: arguments in, a progress bar, a result out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import psutil

from lightning_intune.dedup.etl.engine import LEAST_LIMIT_BYTES, MIB, parse_bytes
from lightning_intune.mistakes import CommandParser, add_output, whole_number

if TYPE_CHECKING:
    from rich.progress import Progress


def analyze_main(arguments: Sequence[str]) -> int:
    """`lightning-intune analyze DATA ...`; returns the exit status. ConfigError for a user's mistake."""
    parser = _parser(
        "analyze", "Measure how often features repeat within sessions, and what deduplication would spare."
    )
    parser.add_argument("data", nargs="+", help="Parquet, CSV or JSON lines (.gz too): files, folders, globs")
    parser.add_argument(
        "--session", help="the column that says which rows belong together; without it, rows as they are"
    )
    parser.add_argument("--time", help="the column that orders rows within a session")
    parser.add_argument("--sample-rows", type=int, default=100_000, help="look at whole sessions of about so many rows")
    parser.add_argument("--batch-rows", type=int, default=4_096, help="rows of a training batch")
    parser.add_argument("--step-share", type=float, default=0.5, help="share of a step's time that grows with values")
    parser.add_argument("--png", type=Path, help="draw the result into this file")
    _add_common(parser)
    options = parser.parse_args(arguments)
    from lightning_intune.dedup.etl.analysis import AnalyzeJob, analyze
    from lightning_intune.dedup.etl.analysis_view import draw_analysis, print_analysis

    job = AnalyzeJob(
        paths=options.data,
        session=options.session,
        time=options.time,
        sample_rows=options.sample_rows,
        batch_rows=options.batch_rows,
        step_share=options.step_share,
        history=options.history,
        memory_limit_bytes=_limit(options.memory_limit),
        threads=options.threads,
    )
    with _progress(options) as progress:
        progress.add_task("looking at the data", total=None)
        found = analyze(job)
    if options.png is not None:
        draw_analysis(found, options.png)
    if not options.json and not options.quiet:
        from rich.console import Console

        print_analysis(found, Console())
        return 0
    line = f"{found.value_factor:.2f}x fewer bytes per batch by {len(found.groups)} groups of features"
    return _tell(options, asdict(found), line)


def cluster_main(arguments: Sequence[str]) -> int:
    """`lightning-intune cluster IN... OUT ...`; returns the exit status. ConfigError for a user's mistake."""
    parser = _parser("cluster", "Write rows anew, session by session within each day, verified and resumable.")
    parser.add_argument("input", nargs="+", help="Parquet, CSV or JSON lines (.gz too): files, folders, globs")
    parser.add_argument("output", help="a new folder: one Parquet file per time partition")
    parser.add_argument("--session", required=True, help="the column that says which rows belong together")
    parser.add_argument("--time", required=True, help="timestamps, or numbers of s, ms, us or ns since 1970")
    parser.add_argument("--layout", choices=["rows", "sessions"], default="rows", help="sessions: one row per session")
    parser.add_argument(
        "--partition", choices=["day", "hour", "none"], default="day", help="UTC; sessions are cut there"
    )
    parser.add_argument(
        "--session-columns", help="a,b,c: stored once per session (default: all that never change in one)"
    )
    parser.add_argument("--drop-nulls", action="store_true", help="leave out rows without session or time")
    parser.add_argument("--row-group-rows", type=int, default=65_536, help="rows (events) of a Parquet row group")
    parser.add_argument("--max-session-rows", type=int, default=65_536, help="cut longer sessions (layout sessions)")
    parser.add_argument(
        "--engine", choices=["duckdb", "ray"], default="duckdb", help="ray: sort Parquet on a Ray cluster"
    )
    parser.add_argument("--scratch", help="folder that sorting spills to (default: beside the output)")
    parser.add_argument("--scratch-limit", help="the most it may take, like 100GiB")
    _add_common(parser)
    options = parser.parse_args(arguments)
    from lightning_intune.dedup.etl.cluster import ClusterJob, VerificationError, cluster

    columns = None if options.session_columns is None else options.session_columns.split(",")
    job = ClusterJob(
        paths=options.input,
        output=options.output,
        session=options.session,
        time=options.time,
        layout=options.layout,
        partition=options.partition,
        session_columns=columns,
        drop_nulls=options.drop_nulls,
        history=options.history,
        row_group_rows=options.row_group_rows,
        max_session_rows=options.max_session_rows,
        engine=options.engine,
        memory_limit_bytes=_limit(options.memory_limit),
        scratch=options.scratch,
        scratch_limit_bytes=None if options.scratch_limit is None else parse_bytes(options.scratch_limit),
        threads=options.threads,
    )
    try:
        with _progress(options) as progress:
            result = cluster(job, _steps(progress))
    except VerificationError as error:
        sys.stderr.write(f"lightning-intune: {error}\n")
        return 1
    line = (
        f"{result.num_rows:,} rows of {result.num_sessions:,} sessions in {result.num_parts} partitions "
        f"({result.num_resumed} of an earlier run), verified, written to '{result.output}': {result.num_bytes:,} bytes "
        f"(the input: {result.input_bytes:,})"
    )
    if result.layout == "sessions":
        line += f"; stored once per session: {', '.join(result.session_columns)}"
    if result.num_dropped:
        line += f"; {result.num_dropped:,} rows without session or time were left out"
    return _tell(options, asdict(result), line)


def synth_main(arguments: Sequence[str]) -> int:
    """`lightning-intune synth OUT ...`; returns the exit status. ConfigError for a user's mistake."""
    parser = _parser("synth", "Make up session data with known repeats and a label that can be learnt.")
    parser.add_argument("output", type=Path, help="a new Parquet file")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=["rows", "sessions"], default="rows", help="sessions: one row per session")
    parser.add_argument("--order", choices=["session", "time", "shuffled"], default="session")
    parser.add_argument("--events-per-session", type=float, help="mean (default: the OTTO data's distribution, 16.8)")
    parser.add_argument("--user-features", type=whole_number(0), default=4, help="ids that rarely change in a session")
    parser.add_argument("--sequences", type=whole_number(0), default=2, help="lists of ids that move on")
    parser.add_argument("--item-features", type=whole_number(0), default=2, help="ids new in every event")
    parser.add_argument("--change", type=float, default=0.02, help="chance that a user feature changes, per event")
    parser.add_argument("--sequence-change", type=float, default=0.1, help="chance that a list moves on, per event")
    parser.add_argument("--sequence-length", type=float, default=20.0, help="mean ids of a list")
    parser.add_argument("--shift", type=int, default=1, help="ids by which a list moves on; 0: it is drawn anew")
    parser.add_argument("--num-ids", type=int, default=10_000, help="distinct ids of each feature")
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--with-truth", action="store_true", help="add the label's true probability")
    parser.add_argument("--row-group-rows", type=int, default=65_536)
    add_output(parser)
    options = parser.parse_args(arguments)
    from lightning_intune.dedup.etl.synth import SynthSpec, default_features, write_synth

    spec = SynthSpec(
        num_rows=options.rows,
        seed=options.seed,
        events_per_session=options.events_per_session,
        features=default_features(
            num_user=options.user_features,
            num_sequences=options.sequences,
            num_item=options.item_features,
            change=options.change,
            sequence_change=options.sequence_change,
            sequence_length=options.sequence_length,
            shift=options.shift,
            num_ids=options.num_ids,
        ),
        order=options.order,
        num_days=options.days,
        with_truth=options.with_truth,
    )
    with _progress(options) as progress:
        task = progress.add_task("drawing sessions", total=spec.num_rows)
        path = write_synth(
            spec,
            options.output,
            layout=options.layout,
            row_group_rows=options.row_group_rows,
            on_rows=lambda rows: progress.advance(task, rows),
        )
    num_bytes = path.stat().st_size
    report = {"output": str(path), "num_rows": spec.num_rows, "num_bytes": num_bytes, "layout": options.layout}
    return _tell(options, report, f"{spec.num_rows:,} rows written to '{path}': {num_bytes:,} bytes")


@final
class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser(name: str, what: str) -> argparse.ArgumentParser:
    return CommandParser(prog=f"lightning-intune {name}", description=what, formatter_class=_Formatter)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--history", type=int, default=0, help="OTTO's format: list the last so many items before each")
    parser.add_argument("--memory-limit", help="like 4GiB (default: half of what is free, up to 4GiB)")
    parser.add_argument("--threads", type=int, default=_num_cpus())
    add_output(parser)


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limit(asked: str | None) -> int:
    if asked is not None:
        return parse_bytes(asked)
    return max(LEAST_LIMIT_BYTES, min(4 * 1024 * MIB, psutil.virtual_memory().available // 2))


@contextmanager
def _progress(options: argparse.Namespace) -> Generator[Progress]:
    """A bar on stderr, none with `--json` and `--quiet`; rich heeds NO_COLOR and terminals that are none."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=options.json or options.quiet) as progress:
        yield progress


def _steps(progress: Progress) -> Callable[[str, int, int], None]:
    task = progress.add_task("starting", total=None)

    def show(what: str, done: int, total: int) -> None:
        progress.update(task, description=what, completed=done, total=total or None)

    return show


def _tell(options: argparse.Namespace, report: dict[str, Any], line: str) -> int:
    sys.stdout.write((json.dumps(report) if options.json else line) + "\n")
    return 0
