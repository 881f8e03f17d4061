"""Every engine's best setting by trying them, then paired rounds in turn; who is how far ahead."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from benchmarks.peers_parts.data import folder_of
from benchmarks.peers_parts.engines import BARE_THREADS, PEERS, PLAIN, Engine
from benchmarks.peers_parts.measured import measured
from benchmarks.peers_parts.ours import FIXED, OURS, fixed_settings, tuned
from benchmarks.peers_parts.sweep import sweep
from benchmarks.peers_parts.work import Fused, digest, make_work
from benchmarks.result import machine, put

_MODULES = {"spdl": "spdl.pipeline", "tfdata": "tensorflow", "dataloader": "torch"}
_CONTENDS = 0.85
"""Of the best peer's swept rate: a peer below it has no say in any ratio, and takes part in two rounds only."""
_NAMED = ("dataloader", "tfdata")
"""Ratios are formed with these, however slow they are."""
_PLAIN_ROUNDS = 3
_QUICK = {"udf": "processes=2"}  # by workload, where an engine has that shape
Found = dict[str, Any]
Round = dict["Entrant", Found]


@final
@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An engine, and the work it is given."""

    engine: Engine
    work: str
    """As `make_work` names it."""

    def __str__(self) -> str:
        return f"{self.work} {self.engine.name}"


@final
class Contest:
    """One workload. `say` gets a line per run, for people who wait.

    In `sessions` the peers read rows, as their users store them, and take part a second time on our session layout.
    """

    def __init__(self, workload: str, *, quick: bool, say: Callable[[str], Any]) -> None:
        self.workload, self._say, self._quick = workload, say, quick
        self._folder = folder_of(32_768 if quick else 262_144)
        self._sweep_s, self._run_s = (0.8, 1.0) if quick else (1.0, 3.0)
        self.warm_up_s, self.tune_s = (0.5, 2.0) if quick else (1.5, 12.0)
        self._timeout_s = 30.0 if quick else 90.0
        self._rounds = 1 if quick else 5
        self._ours_work = "sessions_layout" if workload == "sessions" else workload
        works = dict.fromkeys((workload, self._ours_work))
        self._digests = {name: digest(Fused(make_work(name, self._folder), tensors=False)(0)) for name in works}
        self.failures: dict[str, str] = {}
        self._began_s = time.perf_counter()
        self._ours = Entrant(engine=OURS, work=self._ours_work)
        settings = fixed_settings(self._ours_work)[: 1 if quick else None]
        self._fixed = Entrant(engine=replace(FIXED, fixed=settings), work=self._ours_work)
        self._threads = Entrant(engine=BARE_THREADS, work=workload)

    def run(self, names: Sequence[str]) -> dict[str, Any]:
        """The workload's figures, with `names` of the peers."""
        engines = [engine for engine in PEERS if engine.name in names and self._is_there(engine)]
        swept: dict[Entrant, dict[str, float]] = {}
        for work in self._digests:
            for engine in engines:
                entrant = Entrant(engine=engine, work=work)
                best_so_far = max(
                    (max(swept[one].values(), default=0.0) for one in swept if one.work == work), default=0.0
                )
                to_beat = 0.0 if engine.name in _NAMED else best_so_far
                swept[entrant] = self._quick_choice(engine) if self._quick else self._sweep(entrant, to_beat)
        swept[self._fixed] = dict.fromkeys(self._fixed.engine.fixed, 0.0) if self._quick else self._sweep(self._fixed)
        best = {entrant: max(rates, key=lambda s: rates[s]) for entrant, rates in swept.items() if rates}
        best[self._ours] = tuned(best.get(self._fixed, self._fixed.engine.fixed[0]))
        best |= {Entrant(engine=PLAIN, work=work): "loop" for work in self._digests}
        if self.workload == "local":  # elsewhere threads wait, or hold the lock: it would say nothing
            best[self._threads] = f"threads={machine()['cores']}"
        rounds: list[Round] = []
        for number in range(self._rounds):
            order = [entrant for entrant in best if number < self._rounds_of(entrant, swept)]
            self._tell(f"round {number + 1} of {self._rounds}, {len(order)} runs")
            if number % 2:
                order.reverse()
            found = {entrant: self._measure(entrant, best[entrant], self._run_s, self.warm_up_s) for entrant in order}
            rounds.append({entrant: figures for entrant, figures in found.items() if figures is not None})
        return self._figures(rounds, best, swept)

    def _rounds_of(self, entrant: Entrant, swept: Mapping[Entrant, Mapping[str, float]]) -> int:
        if entrant.engine in (PLAIN, BARE_THREADS):
            return _PLAIN_ROUNDS  # of the one only its CPU seconds count, which vary little
        return self._rounds if contends(entrant, swept) else 2

    def _tell(self, text: str) -> None:
        minutes, seconds = divmod(int(time.perf_counter() - self._began_s), 60)
        self._say(f"{minutes:2d}:{seconds:02d} {text}")

    def _is_there(self, engine: Engine) -> bool:
        module = _MODULES.get(engine.name, engine.name)
        try:
            is_there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            is_there = False
        if not is_there:
            self.failures[engine.name] = f"not installed: pip install {engine.package}"
            self._tell(f"{engine.name}: {self.failures[engine.name]}")
        return is_there

    def _quick_choice(self, engine: Engine) -> dict[str, float]:
        wanted = _QUICK.get(self.workload, "")
        shape = wanted.split("=")[0]
        return {wanted if shape in engine.shapes else f"{engine.shapes[0]}=2": 0.0}

    def _sweep(self, entrant: Entrant, to_beat: float = 0.0) -> dict[str, float]:
        def rate(setting: str) -> float | None:
            found = self._measure(entrant, setting, self._sweep_s, 0.5)
            return None if found is None else float(found["rows_per_s"])

        return sweep(entrant.engine, rate, to_beat=to_beat)

    def _measure(self, entrant: Entrant, setting: str, seconds: float, warm_up_s: float) -> Found | None:
        name = entrant.engine.name
        job = {
            "workload": entrant.work,
            "folder": str(self._folder),
            "engine": name,
            "setting": setting,
            "seconds": seconds,
            "warm_up_s": self.tune_s if name == "ours" else warm_up_s,
        }
        found, error = measured("benchmarks.peers_parts.child", job, self._timeout_s)
        if found is not None and found["digest"] != self._digests[entrant.work]:
            found, error = None, "its first batch is not the batch that the plain loop makes"
        if found is None:
            self.failures[f"{entrant} {setting}"] = error
            self._tell(f"{entrant} {setting}: failed: {error}")
        else:
            self._tell(f"{entrant} {setting}: {found['rows_per_s']:,.0f} rows/s")
        return found

    # ---- what came of it ----

    def _figures(
        self, rounds: list[Round], best: dict[Entrant, str], swept: dict[Entrant, dict[str, float]]
    ) -> dict[str, Any]:
        ours = self._ours
        runs = [found[ours] for found in rounds if ours in found]
        if not runs:
            raise RuntimeError(f"{self.workload}: our own run failed: {self.failures}")
        figures: dict[str, Any] = {"workload": self.workload, "runs": len(rounds), "setting": best[ours]}
        figures["warm_up_s"] = {"ours": self.tune_s, "peers": self.warm_up_s}
        _put_run(figures, runs, "ours_rows_per_s")
        figures["widths"] = [run["widths"] for run in runs]
        put(figures, "seconds_to_95pct", [run["seconds_to_95pct"] for run in runs])
        rooflines = self._rooflines(rounds, self._ours_work)
        put(figures, "roofline_rows_per_s", rooflines)
        roofline = statistics.median(rooflines)
        put(figures, "roofline_share", [run["rows_per_s"] / roofline for run in runs])
        for work in self._digests:
            suffix = "" if work == self.workload else "_session_layout"
            peers = {
                entrant.engine.name: entrant for entrant in best if entrant.work == work and entrant.engine in PEERS
            }
            figures[f"peers{suffix}"] = _peers(rounds, peers, best, swept)
            _ratios(figures, rounds, {"": ours, "_fixed": self._fixed}, peers, suffix)
        figures |= _peers(rounds, {FIXED.name: self._fixed}, best, swept)
        shares = _paired(rounds, ours, self._fixed)
        if shares:
            put(figures, "share_of_fixed", shares)
        of_threads = _paired(rounds, ours, self._threads)
        if of_threads:
            threads = [found[self._threads]["rows_per_s"] for found in rounds if self._threads in found]
            put(figures, "bare_threads_rows_per_s", threads)
            put(figures, "share_of_bare_threads", of_threads)
        if self.workload == "sessions":
            put(figures, "roofline_rows_per_s_row_layout", self._rooflines(rounds, "sessions"))
            _parts(figures)
        figures["failures"] = self.failures
        return figures

    def _rooflines(self, rounds: list[Round], work: str) -> list[float]:
        plain, cores = Entrant(engine=PLAIN, work=work), machine()["cores"]
        return [cores / found[plain]["cpu_s_per_mrow"] * 1e6 for found in rounds if plain in found]


def _peers(
    rounds: list[Round], peers: dict[str, Entrant], best: dict[Entrant, str], swept: dict[Entrant, dict[str, float]]
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, entrant in peers.items():
        runs = [found[entrant] for found in rounds if entrant in found]
        if runs:
            entries[name] = {"setting": best[entrant], "swept_rows_per_s": swept[entrant]}
            _put_run(entries[name], runs, "best_rows_per_s")
    return entries


def _ratios(
    figures: dict[str, Any], rounds: list[Round], mine: dict[str, Entrant], peers: dict[str, Entrant], suffix: str
) -> None:
    """Ours over the best peer, DataLoader and tf.data, pair by pair; `mine` by the ending of the keys."""
    entries = figures[f"peers{suffix}"]
    if not entries:
        return
    best_peer = max(entries, key=lambda name: entries[name]["best_rows_per_s"])
    figures[f"best_peer{suffix}"] = best_peer
    for key, name in {"best_peer": best_peer, "dataloader": "dataloader", "tfdata": "tfdata"}.items():
        for ending, entrant in mine.items():
            ratios = _paired(rounds, entrant, peers.get(name))
            if ratios:
                put(figures, f"ratio_{key}{suffix}{ending}", ratios)
                figures[f"ratio_{key}{suffix}{ending}_ci"] = interval(ratios)


def _paired(rounds: list[Round], mine: Entrant, theirs: Entrant | None) -> list[float]:
    """One's rate over the other's, in every round in which both ran."""
    if theirs is None:
        return []
    both = [found for found in rounds if mine in found and theirs in found]
    return [found[mine]["rows_per_s"] / found[theirs]["rows_per_s"] for found in both]


def contends(entrant: Entrant, swept: Mapping[Entrant, Mapping[str, float]]) -> bool:
    """Whether a ratio may be formed with it: all but the peers that the sweep found far behind the best one."""
    if entrant.engine not in PEERS or entrant.engine.name == "dataloader":
        return True
    rates = {
        one: max(found.values())
        for one, found in swept.items()
        if found and one.engine in PEERS and one.work == entrant.work
    }
    return rates.get(entrant, 0.0) >= _CONTENDS * max(rates.values(), default=0.0)


def _parts(figures: dict[str, Any]) -> None:
    """What the layout gives from best peer to best peer, and what the engine gives on top of it."""
    rows, sessions = figures["peers"], figures["peers_session_layout"]
    if rows and sessions:
        best_rows = rows[figures["best_peer"]]["best_rows_per_s"]
        best_sessions = sessions[figures["best_peer_session_layout"]]["best_rows_per_s"]
        figures["layout_gain"] = best_sessions / best_rows
        figures["engine_gain"] = figures["ours_rows_per_s"] / best_sessions


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
