"""`docs/benchmarks.md` and its pictures, made from `benchmarks/results/*.json`: `python -m benchmarks.report`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.targets import Target, targets_of

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PICTURES = ROOT / "docs" / "images"
TITLES = {
    "peers-local": "Files in the page cache",
    "peers-remote": "Files 20 ms away",
    "peers-udf": "A function in pure Python",
    "peers-sessions": "Sessions",
    "train": "Training under Lightning",
    "scale": "How cost grows",
}
NAMES = tuple(TITLES)
_QUIET = 0.1
_ABOUT = {
    "peers-local": "262,144 rows of 20 lists, 6 ids and 13 numbers, 4096 to a batch, read and transformed.",
    "peers-remote": "The same; every read waits 20 ms first (simulated).",
    "peers-udf": "The same, and a tokeniser in pure Python for each row's text, which holds the GIL.",
    "peers-sessions": "The same logical batches, checked by a digest. Our users may store one row per session; the "
    "peers read one row per impression, and in the second table our session layout too. The roofline is a plain "
    "loop's, which pays for fresh pages with every batch: an engine that uses memory again can stand above it.",
    "train": "The same model code over the same batches in the same order. `dataloader_sessions` is a DataLoader that "
    "is given our deduplicated batches: what is left of the ratio there is the engine's.",
    "scale": "One thing grows at a time. The streamed rows are hard links to one file.",
}


def main() -> None:
    """Write the page."""
    write()
    print(f"report: wrote {PAGE.relative_to(ROOT)}")


def write() -> None:
    """Page and pictures, of the results that are there."""
    found = results()
    PAGE.write_text(page(found))
    for name, figures in found.items():
        draw(name, figures)


def results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The figures by name, in the page's order."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def command_of(name: str) -> str:
    """What makes the figures."""
    module, _, workload = name.partition("-")
    return f"python -m benchmarks.{module} " + (f"--workload {workload} " if workload else "") + "--json"


def page(found: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    parts = [
        "# Benchmarks",
        "This page is made by `python -m benchmarks.report` from `benchmarks/results/*.json`, and `python -m "
        "benchmarks.everything` makes those files and then the page. The peers come with `pip install "
        "'lightning-intune[bench]'`. Figures are medians, with the least and the most of all rounds in the files; "
        "ratios are formed pair by pair within a round. Ours starts at width 1 and tunes itself during its warm-up; "
        "each peer comes with the best of its settings.",
    ]
    if not found:
        parts.append("No results are there yet.")
    parts += [_section(name, figures) for name, figures in found.items()]
    return "\n\n".join(parts) + "\n"


def _section(name: str, figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    others = machine.get("used_by_others")
    state = "not noted" if others is None else f"{others:.0%} of its CPU time"
    warning = "" if others is not None and others <= _QUIET else " **The machine was not quiet: read only ratios.**"
    quick = " **A quick run: one round, little data.**" if figures["quick"] else ""
    where = (
        f"`{command_of(name)}` on {figures['date']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Python {machine['python']}, torch {machine['torch']}; used by others just "
        f"before: {state}.{warning}{quick}"
    )
    table = importlib.import_module(f"benchmarks.{name.partition('-')[0]}").table(figures)
    picture = f"![{TITLES[name]}](images/benchmarks-{name}.png)" if name != "train" else ""
    asked = _asked(targets_of(name, figures))
    return "\n\n".join(part for part in (f"## {TITLES[name]}", _ABOUT[name], where, asked, table, picture) if part)


def _asked(targets: list[Target]) -> str:
    if not targets:
        return ""
    lines = ["| asked | measured | |", "|---|--:|---|"]
    lines += [f"| {target.text} | {target.shown} | {'met' if target.is_met else 'missed'} |" for target in targets]
    return "\n".join(lines)


def draw(name: str, figures: dict[str, Any]) -> None:
    """The picture of one, if it has one."""
    if name == "train":
        return
    PICTURES.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"benchmarks.{name.partition('-')[0]}_parts.plot")
    module.draw(figures, PICTURES / f"benchmarks-{name}.png")


if __name__ == "__main__":
    sys.exit(main())
