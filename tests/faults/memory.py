"""Less memory than the widths ask for: ours must come through within its budget; `python -m tests.faults.memory` also
shows what becomes of tf.data's AUTOTUNE and of a DataLoader that prefetches deeply, under the same limit.

The peers need the extra [bench]; those that are not installed are said to be absent. All run with glibc's
MALLOC_MMAP_THRESHOLD_ at 1 MiB: arrays go back to the system when they are dropped, so that the peak is what is held,
and not what an allocator keeps for later.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.hog import AHEAD, ITEM_BYTES, NUM_ITEMS, WIDTH
from tests.faults.ledger import Trial
from tests.faults.memory_limit import memory_group
from tests.faults.runner import Scenario

ROOT = Path(__file__).parents[2]
SPARE_MIB = 512
"""What a run may take beyond what it has when all is imported; the budget of the engine is 3/8 of it."""
OWN_BYTES = 24 << 20
"""Of the interpreter, its threads and the pages of files it reads meanwhile."""
IDLE_BYTES = 32 << 20
"""Of shared memory that a lane keeps for the next results."""
ENGINES = ("ours-threads", "ours-processes", "tf.data", "dataloader")


def run(engine: str, log: Path | None = None) -> dict[str, Any]:
    """What the run said, or how it ended: {"engine", "ended"}."""
    with memory_group() as group:
        folder = "-" if group.folder is None else str(group.folder)
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.hog", engine, str(SPARE_MIB), folder],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
            start_new_session=True,
        )
        if log is not None:
            log.write_text(done.stderr)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "Error:" in line), lines[-1] if lines else "")
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
        return {"engine": engine, "limited_by": group.kind, "ended": how, "said": last[:300]}


def allowed_bytes(budget_bytes: int, method: str) -> int:
    """The budget, and an item in the hands of each worker, of the prefetcher and of the trainer.

    A worker process has the array it made, the slot of shared memory it copies that into, and free ones of up to 32
    MiB; slots have an eighth to spare, so that the next result, a little larger, fits too.
    """
    if method == "threads":
        return budget_bytes + (WIDTH + 2) * ITEM_BYTES + OWN_BYTES
    slot_bytes = ITEM_BYTES * 9 // 8
    return budget_bytes * 9 // 8 + WIDTH * (ITEM_BYTES + slot_bytes + IDLE_BYTES) + 2 * slot_bytes + OWN_BYTES


def little_memory(trial: Trial) -> None:
    """Asked for 128 items ahead in each of two stages, 4 times the limit: it comes through, and within its budget."""
    assert 2 * AHEAD * ITEM_BYTES == 4 * SPARE_MIB << 20
    for method in ("threads", "processes"):
        found = run(f"ours-{method}")
        trial.inject()
        if "ended" in found:
            trial.check(False, f"lost: the run in {method} under {found['limited_by']} ended: {found}")
            continue
        trial.came(range(NUM_ITEMS), range(found["items"]))
        most, peak, budget = found["most_admitted_bytes"], found["peak_bytes"], found["budget_bytes"]
        trial.check(0 < most <= budget, f"over budget: {most} bytes were admitted, {budget} may be, in {method}")
        if found["limited_by"] == "control group" or method == "threads":  # RLIMIT_AS knows one process only
            allowed = allowed_bytes(budget, method)
            trial.check(peak <= allowed, f"over budget: {peak} bytes at the peak, {allowed} allowed, in {method}")


SCENARIOS = (
    Scenario(
        name="memory for a quarter of what is asked",
        promise="to the end, within its budget",
        run=little_memory,
        is_heavy=True,
        timeout_s=900.0,
    ),
)


def main() -> int:
    """One line for each engine; the exit status is 1 if ours did not come through."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"8 MiB items, {SPARE_MIB} MiB to spare, {2 * AHEAD} items asked for ahead or automatic")
    for name in ("engine", "limited by", "items", "peak MiB", "admitted MiB, most", "seconds", "ended"):
        table.add_column(name, overflow="fold")
    status = 0
    for engine in ENGINES:
        found = run(engine)
        status |= engine.startswith("ours") and "ended" in found
        is_absent = "No module named" in found.get("said", "")
        ended = "not installed" if is_absent else f"{found['ended']}: {found['said']}" if "ended" in found else "well"
        mib = [
            f"{found[name] / 2**20:.0f}" if found.get(name) else "-" for name in ("peak_bytes", "most_admitted_bytes")
        ]
        items = f"{found.get('items', '-')} of {NUM_ITEMS}"
        table.add_row(engine, found["limited_by"], items, *mib, str(found.get("seconds", "-")), ended)
    Console(width=140).print(table)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
