"""`make soak`: every scenario again and again for half an hour, one table, and exit 1 if any promise broke.

`SOAK_S=120 make soak` is shorter: two minutes. Besides the scenarios' own promises the whole run must stay flat:
memory, threads, descriptors, shared memory. And at its end this process must hand over at least 0.95 times as many
items per CPU second as one that has just begun, measured in turns (`speed`): a busy neighbour slows both down.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.faults.census import Census
from tests.faults.foreign import BATCH, HOSTILE
from tests.faults.ledger import Counts, Outcome
from tests.faults.runner import Scenario, run_trial
from tests.faults.scenarios import SCENARIOS
from tests.faults.speed import Speeds, compared

_SECONDS = 1800
_MUTATIONS = 20_000
_LEAST_SPEED = 0.95
_RSS_GROWTH = 0.05
_RSS_SPARE_BYTES = 32 << 20  # what an allocator keeps by chance


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One scenario over all its trials."""

    scenario: str
    promise: str
    num_trials: int
    counts: Counts
    broken: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What must not grow, from the first round's end to the last one's, and the speed at the end."""

    num_rounds: int
    rss_mib: tuple[float, float]
    num_threads: tuple[int, int]
    num_fds: tuple[int, int]
    num_shared: tuple[int, int]
    speeds: Speeds

    def broken(self) -> list[str]:
        """The promises that do not hold."""
        found: list[str] = []
        rss, spare = self.rss_mib, _RSS_SPARE_BYTES / 2**20
        if rss[1] > rss[0] * (1 + _RSS_GROWTH) + spare:
            found.append(f"memory grew from {rss[0]:.0f} to {rss[1]:.0f} MiB")
        for what, (first, last) in (
            ("threads", self.num_threads),
            ("descriptors", self.num_fds),
            ("shared mappings", self.num_shared),
        ):
            if last > first:
                found.append(f"{what} grew from {first} to {last}")
        if self.speeds.ratio < _LEAST_SPEED:
            found.append(f"throughput fell to {self.speeds.ratio:.3f} of a fresh process's")
        return found


def main(arguments: Sequence[str]) -> int:
    """Run for `--seconds`; the exit status is 1 if a promise broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_S") or _SECONDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mutations", type=int, help="hostile files; default: 20,000 in half an hour, else in proportion"
    )
    parser.add_argument("--json", type=Path, help="write the result into this file too")
    options = parser.parse_args(arguments)
    if options.mutations is None:
        options.mutations = round(_MUTATIONS * min(1.0, options.seconds / _SECONDS))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what is in its background deaf to Ctrl-C, and the trainers with it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    began_s = time.monotonic()
    outcomes, counts = defaultdict[str, list[Outcome]](list), list[Census]()

    def try_once(scenario: Scenario, seed: int) -> None:
        outcome = run_trial(scenario, seed)
        outcomes[scenario.name].append(outcome)
        say(f"{time.monotonic() - began_s:.0f} s: {scenario.name}: {'; '.join(outcome.broken) or 'held'}")

    for round_number in rounds(options.seconds):
        for scenario in (each for each in SCENARIOS if each is not HOSTILE):
            try_once(scenario, options.seed * 1_000_003 + round_number)
            if time.monotonic() - began_s > options.seconds and round_number > 0:
                break
        # Hostile files keep pace with the time: all of them are done when it is over.
        share = min(1.0, (time.monotonic() - began_s) / options.seconds)
        while len(outcomes[HOSTILE.name]) * BATCH < share * options.mutations:
            try_once(HOSTILE, options.seed * 1_000_003 + len(outcomes[HOSTILE.name]))
        counts.append(Census.take())
    flat = flatness(counts, compared())
    rows = [row(scenario, outcomes[scenario.name]) for scenario in SCENARIOS]
    broken = [f"{each.scenario}: {words}" for each in rows for words in each.broken] + flat.broken()
    show(rows, flat, broken, time.monotonic() - began_s)
    if options.json is not None:
        report = {"seconds": time.monotonic() - began_s, "rows": [asdict(each) for each in rows], "flat": asdict(flat)}
        options.json.write_text(json.dumps({**report, "broken": broken}, indent=1))
    return int(bool(broken))


def rounds(seconds: float) -> Iterator[int]:
    """Whole rounds until the time is over; at least two, or nothing could be seen to grow."""
    end_s, number = time.monotonic() + seconds, 0
    while number < 2 or time.monotonic() < end_s:
        yield number
        number += 1


def flatness(counts: Sequence[Census], speeds: Speeds) -> Flatness:
    """The first round warms caches up: what grows is measured from its end."""
    first, last = counts[0], counts[-1]
    late = statistics.median(census.rss_bytes for census in counts[-3:])
    return Flatness(
        num_rounds=len(counts),
        rss_mib=(first.rss_bytes / 2**20, late / 2**20),
        num_threads=(len(first.threads), len(last.threads)),
        num_fds=(first.num_fds, last.num_fds),
        num_shared=(first.num_shared, last.num_shared),
        speeds=speeds,
    )


def row(scenario: Scenario, outcomes: Sequence[Outcome]) -> Row:
    """The sums over its trials."""
    return Row(
        scenario=scenario.name,
        promise=scenario.promise,
        num_trials=len(outcomes),
        counts=sum((outcome.counts for outcome in outcomes), Counts()),
        broken=tuple(f"seed {outcome.seed}: {words}" for outcome in outcomes for words in outcome.broken),
    )


def show(rows: Sequence[Row], flat: Flatness, broken: Sequence[str], seconds: float) -> None:
    """The one table."""
    table = Table(title=f"soak: {flat.num_rounds} rounds in {seconds / 60:.1f} minutes")
    table.add_column("scenario", overflow="fold")
    for name in ("trials", "injections", "items in", "out exactly once", "errors named", "leaks"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in rows:
        _add(table, each.scenario, each.num_trials, each.counts, is_broken=bool(each.broken))
    table.add_section()
    total = sum((each.counts for each in rows), Counts())
    _add(table, "all", sum(each.num_trials for each in rows), total, is_broken=bool(broken))
    console = Console(width=max(110, Console().width))
    console.print(table)
    console.print(
        f"from the first round to the last: memory {flat.rss_mib[0]:.0f} -> {flat.rss_mib[1]:.0f} MiB, threads "
        f"{flat.num_threads[0]} -> {flat.num_threads[1]}, descriptors {flat.num_fds[0]} -> {flat.num_fds[1]}, shared "
        f"mappings {flat.num_shared[0]} -> {flat.num_shared[1]}; at the end {flat.speeds.soaked:,.0f} items "
        f"per CPU second, a fresh process in turns with it {flat.speeds.fresh:,.0f}: {flat.speeds.ratio:.3f}",
        highlight=False,
    )
    for words in broken:
        console.print(Text(f"BROKEN: {words}", "bold red"))


def _add(table: Table, name: str, num_trials: int, counts: Counts, *, is_broken: bool) -> None:
    numbers = (num_trials, counts.num_injected, counts.num_in, counts.num_once)
    errors = f"{counts.num_named} of {counts.num_errors}" if counts.num_errors else "-"
    mark = Text("BROKEN", "bold red") if is_broken else Text("held", "green")
    table.add_row(name, *(f"{number:,}" for number in numbers), errors, str(counts.num_leaks), mark)


def say(words: Any) -> None:
    """Progress, beside the result."""
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
