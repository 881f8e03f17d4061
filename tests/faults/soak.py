"""`make soak`: every scenario again and again for half an hour, one table, and exit 1 if any promise broke.

`SOAK_S=120 make soak` is shorter: two minutes. Besides the scenarios' own promises the whole run must stay flat:
memory, threads, descriptors, shared memory, and the throughput of one and the same pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
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

from lightning_intune.flow import ElasticLoader, ElasticMapper, ElasticPrefetcher, IterableSource
from tests.faults import functions
from tests.faults.census import Census
from tests.faults.foreign import BATCH, HOSTILE
from tests.faults.ledger import Outcome
from tests.faults.runner import Scenario, run_trial
from tests.faults.scenarios import SCENARIOS

_SECONDS = 1800
_MUTATIONS = 20_000
_PROBE_ITEMS = 20_000
_PROBES = 5
_END_PROBES = 40  # at most: a neighbour on the machine may slow some of them down
_RSS_GROWTH = 0.05
_RSS_SPARE_BYTES = 32 << 20  # what an allocator keeps by chance


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One scenario over all its trials."""

    scenario: str
    promise: str
    num_trials: int
    num_injected: int
    num_in: int
    num_once: int
    num_errors: int
    num_named: int
    num_leaks: int
    broken: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Flatness:
    """What must not grow, from the first round's end to the last one's; items/s as the best of several probes."""

    num_rounds: int
    rss_mib: tuple[float, float]
    num_threads: tuple[int, int]
    num_fds: tuple[int, int]
    num_shared: tuple[int, int]
    items_per_s: tuple[float, float]

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
        if self.items_per_s[1] < 0.95 * self.items_per_s[0]:
            found.append("throughput fell from {:.0f} to {:.0f} items/s".format(*self.items_per_s))
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
    began_s = time.monotonic()
    outcomes, counts, speeds = defaultdict[str, list[Outcome]](list), list[Census](), list[float]()

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
        if not speeds:
            speeds.append(max(items_per_s() for _ in range(_PROBES)))
    speeds.append(last_speed(speeds[0]))
    flat = flatness(counts, (speeds[0], speeds[-1]))
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


def items_per_s() -> float:
    """Of a pipeline of threads and processes that does next to nothing."""
    node = ElasticMapper(IterableSource(range(_PROBE_ITEMS)), functions.same, 2, method="process", name="probe")
    with ElasticLoader(ElasticPrefetcher(ElasticMapper(node, functions.same, 2), 8)) as loader:
        items = iter(loader)
        next(items)  # the processes are there now
        began_s = time.perf_counter()
        count = sum(1 for _ in items)
        return count / (time.perf_counter() - began_s)


def last_speed(first: float) -> float:
    """The best of several probes, of as many as at the start, and more while a busy machine hides it."""
    best = 0.0
    for number in range(_END_PROBES):
        best = max(best, items_per_s())
        if number + 1 >= _PROBES and best >= 0.95 * first:
            break
    return best


def flatness(counts: Sequence[Census], speeds: tuple[float, float]) -> Flatness:
    """The first round warms caches up: what grows is measured from its end."""
    first, last = counts[0], counts[-1]
    late = statistics.median(census.rss_bytes for census in counts[-3:])
    return Flatness(
        num_rounds=len(counts),
        rss_mib=(first.rss_bytes / 2**20, late / 2**20),
        num_threads=(len(first.threads), len(last.threads)),
        num_fds=(first.num_fds, last.num_fds),
        num_shared=(first.num_shared, last.num_shared),
        items_per_s=speeds,
    )


def row(scenario: Scenario, outcomes: Sequence[Outcome]) -> Row:
    """The sums over its trials."""
    total = {
        name: sum(getattr(outcome, name) for outcome in outcomes)
        for name in ("num_injected", "num_in", "num_once", "num_errors", "num_named", "num_leaks")
    }
    broken = [f"seed {outcome.seed}: {words}" for outcome in outcomes for words in outcome.broken]
    return Row(
        scenario=scenario.name, promise=scenario.promise, num_trials=len(outcomes), broken=tuple(broken), **total
    )


def show(rows: Sequence[Row], flat: Flatness, broken: Sequence[str], seconds: float) -> None:
    """The one table."""
    table = Table(title=f"soak: {flat.num_rounds} rounds in {seconds / 60:.1f} minutes")
    table.add_column("scenario", overflow="fold")
    for name in ("trials", "injections", "items in", "out exactly once", "errors named", "leaks"):
        table.add_column(name, justify="right")
    table.add_column("")
    for each in rows:
        numbers = (each.num_trials, each.num_injected, each.num_in, each.num_once)
        errors = f"{each.num_named} of {each.num_errors}" if each.num_errors else "-"
        mark = Text("BROKEN", "bold red") if each.broken else Text("held", "green")
        table.add_row(each.scenario, *(f"{number:,}" for number in numbers), errors, str(each.num_leaks), mark)
    table.add_section()
    sums = [sum(getattr(each, name) for each in rows) for name in ("num_trials", "num_injected", "num_in", "num_once")]
    named = f"{sum(each.num_named for each in rows)} of {sum(each.num_errors for each in rows)}"
    leaks = str(sum(each.num_leaks for each in rows))
    mark = Text("BROKEN", "bold red") if broken else Text("held", "green")
    table.add_row("all", *(f"{number:,}" for number in sums), named, leaks, mark)
    console = Console(width=max(110, Console().width))
    console.print(table)
    console.print(
        f"from the first round to the last: memory {flat.rss_mib[0]:.0f} -> {flat.rss_mib[1]:.0f} MiB, threads "
        f"{flat.num_threads[0]} -> {flat.num_threads[1]}, descriptors {flat.num_fds[0]} -> {flat.num_fds[1]}, shared "
        f"mappings {flat.num_shared[0]} -> {flat.num_shared[1]}, throughput {flat.items_per_s[0]:,.0f} -> "
        f"{flat.items_per_s[1]:,.0f} items/s",
        highlight=False,
    )
    for words in broken:
        console.print(Text(f"BROKEN: {words}", "bold red"))


def say(words: Any) -> None:
    """Progress, beside the result."""
    sys.stderr.write(f"{words}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
