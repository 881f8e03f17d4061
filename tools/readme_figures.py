"""Fill README.md's table of measured figures from `benchmarks/results/*.json`: `python tools/readme_figures.py`.

The files are what `python -m benchmarks.NAME --json` prints last; `python -m benchmarks.everything` writes some.
A figure whose file is not there is left out; nothing is written by hand between the two marks.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: made by tools/readme_figures.py -->", "<!-- end of figures -->"
NONE_YET = "No results are in `benchmarks/results` yet."


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: which figure of which file, and how it is shown."""

    what: str
    file: str
    key: str
    """Path of keys, parted by dots."""
    form: str


ROWS = (
    Row(
        what="Parquet in the page cache, rows/s over DataLoader's best setting",
        file="peers-local", key="ratio_dataloader", form="{:.2f}x",
    ),
    Row(
        what="... over the best of all peers at their best settings",
        file="peers-local", key="ratio_best_peer", form="{:.2f}x",
    ),
    Row(
        what="files 20 ms away, over the best peer",
        file="peers-remote", key="ratio_best_peer", form="{:.2f}x",
    ),
    Row(
        what="a stage in pure Python, over the best peer",
        file="peers-udf", key="ratio_best_peer", form="{:.2f}x",
    ),
    Row(
        what="sessions, session layout, over the best peer on rows",
        file="peers-sessions", key="ratio_best_peer", form="{:.2f}x",
    ),
    Row(
        what="training a sequence model under Lightning, samples/s over DataLoader's best setting",
        file="train", key="ratio_dataloader", form="{:.2f}x",
    ),
    Row(
        what="overhead per item, over torchdata's (2 workers; smaller is better)",
        file="overhead", key="ratio_torchdata.2", form="{:.2f}x",
    ),
    Row(
        what="simulated pipelines the agent was not trained on: regret after 20 turns",
        file="tuner", key="sim.regret_mean", form="{:.2%}",
    ),
    Row(
        what="... of its model alone, without learning",
        file="tuner", key="sim.baselines.model.regret_mean", form="{:.2%}",
    ),
    Row(
        what="preprocessing deduplicated sessions of 17 rows, over plain rows",
        file="dedup", key="preprocess_ratio.ikjt", form="{:.2f}x",
    ),
    Row(
        what="training the sequence model on them",
        file="dedup", key="train_ratio.sequence", form="{:.2f}x",
    ),
    Row(
        what="share of the measured bubble that balancing takes away, 2 ranks",
        file="balance", key="measured.2.cut", form="{:.0%}",
    ),
)  # fmt: skip


def figure(found: dict[str, Any], key: str) -> float | None:
    """What stands at the dotted path, None where nothing does.

    >>> figure({"sim": {"regret_mean": 0.6}}, "sim.regret_mean"), figure({}, "sim")
    (0.6, None)
    """
    at: Any = found
    for part in key.split("."):
        if not isinstance(at, dict) or part not in at:
            return None
        at = at[part]
    return float(at)


def command_of(name: str) -> str:
    """What makes the figures of `results/NAME.json`.

    >>> command_of("peers-local")
    'python -m benchmarks.peers --workload local --json'
    """
    module, _, workload = name.partition("-")
    return f"python -m benchmarks.{module} " + (f"--workload {workload} " if workload else "") + "--json"


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown, or the sentence that there is none yet."""
    lines: list[str] = []
    for row in ROWS:
        value = figure(results.get(row.file, {}), row.key)
        if value is not None and not results[row.file].get("quick"):
            lines.append(f"| {row.what} | {row.form.format(value)} | `{command_of(row.file)}` |")
    if not lines:
        return NONE_YET
    machines = sorted({_machine(found) for found in results.values()})
    return "\n".join(["| measured | figure | by |", "|---|---|---|", *lines, "", f"On: {'; '.join(machines)}."])


def _machine(found: dict[str, Any]) -> str:
    machine = found.get("machine", {})
    return f"{machine.get('cpu', 'a CPU that is not named')}, {machine.get('cores', '?')} cores"


def filled(readme: str, made: str) -> str:
    """`readme` with what stands between the marks replaced; ValueError where they are not."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


def main() -> int:
    """Rewrite README.md between the marks."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(), table(results)))
    print(f"readme: figures from {', '.join(results) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
