"""Every benchmark of `docs/benchmarks.md`, one after the other, into `benchmarks/results`; then the page itself.

    python -m benchmarks.everything            # all, about 45 minutes on two cores that nobody else uses
    python -m benchmarks.everything --only peers-local scale
    python -m benchmarks.everything --quick --results /tmp/quick

What fails is told at the end and leaves its former file alone. Each file says how busy the machine was with
other work just before it began.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.peers_parts.measured import raised_by_sigterm
from benchmarks.report import NAMES, RESULTS, ROOT, command_of, write

_TIMEOUT_S = 3600.0


def main() -> int:
    """Run, collect, write the page; 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run the benchmarks of docs/benchmarks.md and write that page.")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these only")
    parser.add_argument("--quick", action="store_true", help="each within 60 s; for a look, not for the page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    failed = [name for name in args.only if not ran(name, args.results, quick=args.quick)]
    if args.results == RESULTS:
        write()
    print("everything: " + (f"FAILED: {', '.join(failed)}" if failed else "all ran"))
    return 1 if failed else 0


def ran(name: str, folder: Path, *, quick: bool) -> bool:
    """Run one and keep its JSON; its own lines go to the terminal."""
    others = psutil.cpu_percent(interval=2.0) / 100
    command = [sys.executable, *command_of(name).split()[1:], *(["--quick"] if quick else [])]
    print(f"== {name}: {' '.join(command[1:])} (others use {others:.0%} of the machine)", flush=True)
    began_s = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:  # no pipe: what a peer leaves behind would hold it open
        child = subprocess.Popen(command, cwd=ROOT, stdout=out)
        try:
            with raised_by_sigterm():
                code = child.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            child.terminate()  # not killed: it has processes of its own to end
            child.wait()
        out.seek(0)
        lines = out.read().strip().splitlines()
    if code != 0 or not lines:
        return False
    print(f"== {name}: {(time.perf_counter() - began_s) / 60:.1f} minutes", flush=True)
    figures = json.loads(lines[-1])
    figures["machine"]["used_by_others"] = round(others, 3)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
