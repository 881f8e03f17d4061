"""Real Trainer runs of a DLRM and a sequence model: samples/s and the share of time that training waits for data.

Ours reads the session layout, so that each session's features are stored, transformed and computed once, and tunes
itself from width 1; `ours_fixed` is the same at widths 1/1 that nobody turns, so that `ratio_ours_fixed` is the tuner's
part. The DataLoader reads rows, as its users store them, at the best of its workers and torch's threads;
`dataloader_sessions` is the DataLoader given our batches too, so that `ratio_dataloader_sessions` is the engine's part
alone. All run the same model code over the same batches in the same order, and `auc` is that of each after the same
number of steps. The top-level figures are the sequence model's; `models` has both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich.console import Console

from benchmarks.peers_parts.contest import interval
from benchmarks.peers_parts.measured import measured
from benchmarks.result import machine, put
from benchmarks.train_parts.data import folder_of
from benchmarks.train_parts.model import MODELS

HEADLINE = "sequence"
ENGINES = ("ours", "ours_fixed", "dataloader", "dataloader_sessions")
_TIMEOUT_S = 120.0


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description="Lightning runs of a DLRM and a sequence model: ours and DataLoader.")
    parser.add_argument("--quick", action="store_true", help="end within 60 s on 2 cores; same keys, wider spread")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    run(quick=args.quick, as_json=args.json)


def run(*, quick: bool, as_json: bool) -> None:
    """Measure, print a table and, if asked, the JSON object last."""
    figures: dict[str, Any] = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "quick": quick}
    figures |= measure(quick=quick, say=Console(stderr=True, highlight=False).print)
    print(table(figures))
    if as_json:
        print(json.dumps(figures))


def measure(*, quick: bool, say: Callable[[str], Any]) -> dict[str, Any]:
    """All keys of `train`."""
    folder = str(folder_of(16 if quick else 64))
    times = {"seconds": 2.0, "warm_up_s": 1.0, "auc_steps": 4} if quick else {"seconds": 4.0, "auc_steps": 16}
    rounds = 1 if quick else 3
    failures: dict[str, str] = {}
    began_s = time.perf_counter()

    def once(model: str, engine: str, setting: dict[str, int], **changes: Any) -> dict[str, Any] | None:
        warm_up_s = 8.0 if engine.startswith("ours") else 2.0  # both alike, or `ratio_ours_fixed` is not the tuner's
        job = {"folder": folder, "model": model, "engine": engine, "warm_up_s": warm_up_s} | times | setting | changes
        found, error = measured("benchmarks.train_parts.child", job, _TIMEOUT_S)
        if found is None:
            failures[f"{model} {engine} {setting}"] = error
        minutes, seconds = divmod(int(time.perf_counter() - began_s), 60)
        rate = f"{found['samples_per_s']:,.0f} samples/s" if found else error
        say(f"{minutes:2d}:{seconds:02d} {model} {engine} {setting}: {rate}")
        return found

    models: dict[str, Any] = {}
    for model in MODELS:
        best = {engine: _best_setting(partial(once, model, engine), engine, quick=quick) for engine in ENGINES}
        found: list[dict[str, dict[str, Any]]] = []
        for number in range(rounds):
            order = ENGINES if number % 2 == 0 else ENGINES[::-1]
            ran = {engine: once(model, engine, best[engine]) for engine in order}
            found.append({engine: figures for engine, figures in ran.items() if figures is not None})
        models[model] = _figures(found, best)
    return {"runs": rounds, "model": HEADLINE, **models[HEADLINE], "models": models, "failures": failures}


def _best_setting(once: Callable[..., dict[str, Any] | None], engine: str, *, quick: bool) -> dict[str, int]:
    """The best of torch's threads, 1 and 2; then, for a DataLoader, of one and two workers with so many threads."""
    if quick:
        return {"threads": 1, "workers": 1}

    def rate(setting: dict[str, int]) -> float:
        found = once(setting, seconds=1.5, warm_up_s=1.0, auc_steps=1)
        return 0.0 if found is None else float(found["samples_per_s"])

    workers = 1 if "dataloader" in engine else 0
    rates = {threads: rate({"threads": threads, "workers": workers}) for threads in (1, 2)}
    threads = max(rates, key=lambda count: rates[count])
    if workers and rate({"threads": threads, "workers": 2}) > rates[threads]:
        workers = 2
    return {"threads": threads, "workers": workers}


def _figures(found: list[dict[str, dict[str, Any]]], best: dict[str, dict[str, int]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"settings": best}
    for engine in ENGINES:
        runs = [one[engine] for one in found if engine in one]
        if not runs:
            raise RuntimeError(f"{engine} did not finish once")
        put(figures, f"{engine}_samples_per_s", [run["samples_per_s"] for run in runs])
        ending = "" if engine == "ours" else f"_{engine}"
        for key in ("data_wait_share", "auc", "cpu_s", "peak_pss_mb"):
            put(figures, f"{key}{ending}", [run[key] for run in runs])
    figures["widths"] = [one["ours"]["widths"] for one in found if "ours" in one]
    figures["accelerator"] = found[0]["ours"]["accelerator"]
    for engine in ENGINES[1:]:
        pairs = [(one["ours"], one[engine]) for one in found if "ours" in one and engine in one]
        ratios = [ours["samples_per_s"] / theirs["samples_per_s"] for ours, theirs in pairs]
        put(figures, f"ratio_{engine}", ratios)
        figures[f"ratio_{engine}_ci"] = interval(ratios)
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| model | engine | setting | samples/s | waits for data | AUC | CPU s per million | ours / it |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for model, of_model in figures["models"].items():
        for engine in ENGINES:
            ending = "" if engine == "ours" else f"_{engine}"
            ratio = of_model[f"ratio_{engine}"] if engine != "ours" else 1.0
            setting = ", ".join(f"{name}={value}" for name, value in of_model["settings"][engine].items())
            lines.append(
                f"| {model} | {engine} | {setting} | {of_model[f'{engine}_samples_per_s']:,.0f} "
                f"| {of_model[f'data_wait_share{ending}']:.1%} | {of_model[f'auc{ending}']:.4f} "
                f"| {of_model[f'cpu_s{ending}']:.1f} | {ratio:.2f} |"
            )
    lines += [f"\ndid not finish: {name}: {why}" for name, why in figures["failures"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
