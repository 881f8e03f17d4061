"""Every engine's best setting by trying them, then paired rounds in turn; who is how far ahead."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import psutil

from benchmarks.peers_parts.data import folder_of
from benchmarks.peers_parts.engines import PEERS, Engine
from benchmarks.peers_parts.ours import OURS
from benchmarks.peers_parts.work import make_work
from benchmarks.result import machine, put

_MODULES = {"spdl": "spdl.pipeline", "tfdata": "tensorflow", "dataloader": "torch"}


@final
class Contest:
    """One workload. `say` gets a line per run, for people who wait."""

    def __init__(self, workload: str, *, quick: bool, say: Any) -> None:
        self.workload, self._say = workload, say
        self._folder = folder_of(32_768 if quick else 262_144)
        self._work = make_work(workload, self._folder)
        self._sweep_s, self._run_s = (0.8, 1.0) if quick else (2.5, 4.0)
        self._warm_up_s, self._tune_s = (0.5, 2.0) if quick else (2.0, 12.0)
        self._timeout_s = 20.0 if quick else 90.0
        self._rounds = 1 if quick else 5
        self._widths = (2,) if quick else (1, 2, 4, 8)
        self.failures: dict[str, str] = {}

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """The workload's figures, with `names` of the peers."""
        engines = [engine for engine in PEERS if engine.name in names and self._is_there(engine)]
        swept = {engine.name: self._sweep(engine) for engine in engines}
        best = {name: max(rates, key=lambda s: rates[s]) for name, rates in swept.items() if rates}
        best["ours"] = OURS.settings(self._work, self._widths)[0]
        best["plain"] = "loop"
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(self._rounds):
            order = list(best) if number % 2 == 0 else list(reversed(best))
            found = {name: self._measure(name, best[name], self._run_s) for name in order}
            rounds.append({name: figures for name, figures in found.items() if figures is not None})
        return self._figures(rounds, best, swept)

    def _is_there(self, engine: Engine) -> bool:
        module = _MODULES.get(engine.name, engine.name)
        try:
            is_there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            self.failures[engine.name] = f"not installed: pip install {engine.package}"
            self._say(f"{engine.name}: {self.failures[engine.name]}")
        return is_there

    def _sweep(self, engine: Engine) -> dict[str, float]:
        rates = {}
        for setting in engine.settings(self._work, self._widths):
            found = self._measure(engine.name, setting, self._sweep_s)
            if found is not None:
                rates[setting] = found["rows_per_s"]
        return rates

    def _measure(self, name: str, setting: str, seconds: float) -> dict[str, Any] | None:
        job = {
            "workload": self.workload,
            "folder": str(self._folder),
            "engine": name,
            "setting": setting,
            "seconds": seconds,
            "warm_up_s": self._tune_s if name == "ours" else self._warm_up_s,
        }
        found, error = measured(job, self._timeout_s)
        if found is None:
            self.failures[f"{name}/{setting}"] = error
            self._say(f"{self.workload} {name} {setting}: failed: {error}")
        else:
            self._say(f"{self.workload} {name} {setting}: {found['rows_per_s']:,.0f} rows/s")
        return found

    def _figures(
        self, rounds: list[dict[str, dict[str, Any]]], best: dict[str, str], swept: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        figures: dict[str, Any] = {"workload": self.workload, "runs": len(rounds), "peers": {}}
        for name in [name for name in best if name not in ("plain", "ours")]:
            runs = [found[name] for found in rounds if name in found]
            entry: dict[str, Any] = {"setting": best[name], "swept_rows_per_s": swept[name]}
            if runs:
                _put_run(entry, runs, "best_rows_per_s")
                figures["peers"][name] = entry
        ours = [found["ours"] for found in rounds if "ours" in found]
        if not ours:
            raise RuntimeError(f"{self.workload}: our own run failed: {self.failures}")
        _put_run(figures, ours, "ours_rows_per_s")
        put(figures, "seconds_to_95pct", [run["seconds_to_95pct"] for run in ours])
        figures["setting"] = best["ours"]
        cores = machine()["cores"]
        roofline = statistics.median(cores / found["plain"]["cpu_s_per_mrow"] * 1e6 for found in rounds)
        put(figures, "roofline_rows_per_s", [cores / found["plain"]["cpu_s_per_mrow"] * 1e6 for found in rounds])
        put(figures, "roofline_share", [run["rows_per_s"] / roofline for run in ours])
        self._ratios(figures, rounds)
        figures["failures"] = self.failures
        return figures

    def _ratios(self, figures: dict[str, Any], rounds: list[dict[str, dict[str, Any]]]) -> None:
        peers = figures["peers"]
        if not peers:
            return
        figures["best_peer"] = max(peers, key=lambda name: peers[name]["best_rows_per_s"])
        pairs = {"best_peer": figures["best_peer"], "dataloader": "dataloader", "tfdata": "tfdata"}
        for key, name in pairs.items():
            both = [found for found in rounds if name in found and "ours" in found]
            if both:
                ratios = [found["ours"]["rows_per_s"] / found[name]["rows_per_s"] for found in both]
                put(figures, f"ratio_{key}", ratios)
                figures[f"ratio_{key}_ci"] = interval(ratios)


def interval(values: Sequence[float]) -> list[float]:
    """Bootstrapped 95 % interval of the median.

    >>> interval([2.0, 2.0, 2.0])
    [2.0, 2.0]
    """
    rng = np.random.default_rng(0)
    draws = np.median(np.array(values)[rng.integers(0, len(values), (2000, len(values)))], axis=1)
    return [float(np.percentile(draws, 2.5)), float(np.percentile(draws, 97.5))]


def _put_run(figures: dict[str, Any], runs: Sequence[dict[str, Any]], key: str) -> None:
    put(figures, key, [run["rows_per_s"] for run in runs])
    put(figures, "cpu_s", [run["cpu_s_per_mrow"] for run in runs])
    put(figures, "peak_pss_mb", [run["peak_pss_mb"] for run in runs])
    put(figures, "first_batch_s", [run["first_batch_s"] for run in runs])


def measured(job: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """(what the child found, "") or (None, why not). The child's whole session is ended, whatever happened."""
    command = [sys.executable, "-m", "benchmarks.peers_parts.child", json.dumps(job)]
    root = Path(__file__).parent.parent.parent
    # Files, not pipes: worker processes that a peer leaves behind would hold a pipe open for ever.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        peak = _PeakPss(child.pid)
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None, f"no figures after {timeout_s:.0f} s"
        finally:
            peak_mb = peak.stop()
            end_session(child.pid)
            child.wait()
        lines = [_lines(file) for file in (out, err)]
    if child.returncode != 0 or not lines[0]:
        return None, (lines[1] or [f"exit {child.returncode}"])[-1]
    return json.loads(lines[0][-1]) | {"peak_pss_mb": peak_mb}, ""


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def end_session(pid: int) -> None:
    """End every process of the session that `pid` leads: Ray and multiprocessing leave some behind."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == pid:
                process.kill()


@final
class _PeakPss:
    """Watches a process tree's proportional set size from outside, twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_mb, self._done = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            total = 0
            with suppress(psutil.Error):
                me = psutil.Process(self._pid)
                for process in (me, *me.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self._peak_mb = max(self._peak_mb, total / 2**20)

    def stop(self) -> float:
        """End the watch; the peak in MiB."""
        self._done.set()
        self._thread.join()
        return self._peak_mb
