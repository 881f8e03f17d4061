"""Hostile files: mutated Parquet, CSV and JSON lines, fed to the source, `analyze` and `cluster` in a child process.

`python -m tests.faults.hostile FIRST LAST RESULTS` works mutations FIRST to LAST off, one line of JSON each into
RESULTS: so the parent knows which one killed the child, if one did, and goes on behind it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import ElasticMapper, ParquetSource
from lightning_intune.flow.row_groups import RowGroupReadError

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 2 << 30
"""A child may take so much more address space than it has at its start."""
ITEM_S = int(os.environ.get("HOSTILE_ITEM_S") or 10)
"""CPU seconds that a file may take: how busy the machine is does not decide."""
HANG_S = int(os.environ.get("HOSTILE_HANG_S") or 180)
"""Seconds after which a file that takes no CPU either is one that hangs."""
STALLED_S = 600.0
OURS = (ConfigError, StageError, RowGroupReadError)
NAMES = ("ConfigError", "StageError", "RowGroupReadError", "VerificationError")
_NUM_ROWS = 40


# ---- the files ----


def originals() -> dict[str, bytes]:
    """Small good files of several kinds, by name."""
    rows = {
        "session": [f"s{n // 5}" for n in range(_NUM_ROWS)],
        "ts": [1_700_000_000_000 + n * 1000 for n in range(_NUM_ROWS)],
        "user": [n // 5 * 3 for n in range(_NUM_ROWS)],
        "ids": [list(range(n % 6)) for n in range(_NUM_ROWS)],
        "price": [n / 3 for n in range(_NUM_ROWS)],
    }
    table = pa.table(rows)
    found: dict[str, bytes] = {}
    for name, options in {
        "plain.parquet": {"compression": "none", "use_dictionary": False},
        "snappy.parquet": {"compression": "snappy", "row_group_size": 16},
        "zstd.parquet": {"compression": "zstd", "row_group_size": 10, "data_page_version": "2.0"},
        "checked.parquet": {"compression": "zstd", "write_page_checksum": True},
    }.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **options)
        found[name] = sink.getvalue().to_pybytes()
    lines = [json.dumps({name: column[n] for name, column in rows.items()}) for n in range(_NUM_ROWS)]
    found["rows.jsonl"] = "\n".join(lines).encode()
    header, flat = "session,ts,user,price", [name for name in rows if name != "ids"]
    body = [",".join(str(rows[name][n]) for name in flat) for n in range(_NUM_ROWS)]
    found["rows.csv"] = "\n".join([header, *body]).encode()
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes: bytes flipped, cut, repeated, set to extremes, the footer among them."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        if not out:
            break
        # Half of the changes fall into the last part, where Parquet keeps its footer.
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(len(out) * 3 // 4, len(out))
        length = min(rng.choice([1, 2, 4, 8, 64, 512]), len(out) - at)
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + length] = rng.randbytes(length)
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length] * rng.choice([1, 2, 50])
            case 4:
                out[at : at + length] = bytes([rng.choice([0x00, 0x7F, 0x80, 0xFF])]) * length
            case 5:
                del out[rng.randrange(len(out)) :]
            case 6:
                out[at:at] = rng.choice(
                    [b"\xff\xfe", b'"', b"{" * 200, b"[" * 2000, b",,,,", b"\n\n", b"\x00", b"1e999"]
                )
            case _:
                out[at : at + 4] = rng.choice([0, 1, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    return bytes(out)


# ---- the child ----


def feed(path: Path, folder: Path, rng: random.Random) -> str:
    """The file into one of the three; "fine", or the name of what came out."""
    ways = ("source", "analyze", "cluster") if path.suffix == ".parquet" else ("analyze", "cluster")
    way = rng.choice(ways)
    exec(os.environ.get("HOSTILE_FAULT", ""))  # what a test of this very file plants
    try:
        if way == "source":
            source = ParquetSource(str(path))
            for _ in ElasticMapper(source, source.reader(), 1, name="read"):
                pass
        elif way == "analyze":
            from lightning_intune.dedup.etl.analysis import AnalyzeJob, analyze

            analyze(
                AnalyzeJob(paths=[str(path)], session="session", time="ts", memory_limit_bytes=512 << 20, threads=1)
            )
        else:
            from lightning_intune.dedup.etl.cluster import ClusterJob, VerificationError, cluster

            try:
                cluster(
                    ClusterJob(
                        paths=[str(path)], output=str(folder / "out"), session="session", time="ts",
                        memory_limit_bytes=512 << 20, threads=1,
                    )
                )  # fmt: skip
            except VerificationError as error:  # our own, and not a `ConfigError`: the output is not what went in
                return f"{way}: {type(error).__name__}"
    except OURS as error:
        return f"{way}: {type(error).__name__}"
    return f"{way}: fine"


def main(first: int, last: int, results: Path) -> None:
    """Work them off under limits of memory and of time per file."""
    files, used = originals(), _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    faulthandler.enable()
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, signal.SIG_DFL)  # ends the process: a hang in C would hear nothing else
    names = sorted(files)
    with results.open("a", encoding="utf-8") as told, tempfile.TemporaryDirectory(prefix="hostile-") as top:
        for number in range(first, last):
            rng = random.Random(number)
            name = rng.choice(names)
            folder = Path(top) / str(number)
            folder.mkdir()
            path = folder / name
            path.write_bytes(mutated(files[name], rng))
            told.write(json.dumps({"number": number, "begun": name}) + "\n")
            told.flush()
            signal.setitimer(signal.ITIMER_PROF, ITEM_S)
            signal.alarm(HANG_S)
            try:
                outcome, bad = feed(path, folder, rng), ""
            except BaseException as error:  # noqa: BLE001 - that is what we look for
                outcome, bad = type(error).__name__, "".join(traceback.format_exception(error))[-1500:]
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            told.write(json.dumps({"number": number, "outcome": outcome, "bad": bad}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


# ---- the parent ----


def fuzz(first: int, last: int, folder: Path) -> tuple[int, dict[str, int], list[str]]:
    """Mutations FIRST to LAST in child processes: how many, what came of them, and what should not have."""
    results, bad, counts = folder / f"results-{first}", list[str](), dict[str, int]()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    begin, done = first, 0
    while begin < last:
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.faults.hostile", str(begin), str(last), str(results)]
        limit_s = STALLED_S + HANG_S * (last - begin)
        child = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=limit_s, errors="replace"
        )
        lines = list(_lines(results))
        for line in lines:
            if "outcome" in line:
                done += 1
                counts[line["outcome"]] = counts.get(line["outcome"], 0) + 1
                if line["bad"]:
                    bad.append(
                        f"mutation {line['number']}: {line['outcome']}: {line['bad'].splitlines()[-1]}\n{line['bad']}"
                    )
        if child.returncode == 0:
            break
        if not lines or "begun" not in lines[-1]:
            bad.append(f"the child ended with {child.returncode}: {child.stderr[-500:]}")
            break
        killer = lines[-1]
        done += 1
        bad.append(
            f"mutation {killer['number']} of {killer['begun']} ended the process: {child.returncode}, "
            f"{child.stderr[-1500:]}"
        )
        begin = killer["number"] + 1
    return done, counts, bad


def _lines(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _run(arguments: Sequence[str]) -> None:
    main(int(arguments[0]), int(arguments[1]), Path(arguments[2]))


if __name__ == "__main__":
    _run(sys.argv[1:])
