"""Run every example in full, one after the other, and say how long each took: `make examples` runs this.

One that needs data which is not there says so itself. Exits 1 where any failed, after all have run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = [sys.executable, "-m", "lightning_intune.console"]
SESSIONS = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


def commands(scratch: Path) -> dict[str, list[list[str]]]:
    """What a reader of each example's README would type."""
    train, val = str(scratch / "sessions.parquet"), str(scratch / "sessions-val.parquet")
    config, tables = (str(ROOT / "examples" / name / "run.yaml") for name in ("ddp_sessions", "overlapped_tables"))
    data = ["--data.train", train, "--data.val", val, "--trainer.default_root_dir", str(scratch)]
    return {
        "existing_dataloader": [[sys.executable, "-m", "examples.existing_dataloader"]],
        "open_bandit": [[sys.executable, "-m", "examples.open_bandit.demo"]],
        "hammock": [[sys.executable, "-m", "examples.hammock.compare"]],
        "otto_sessions": [[sys.executable, "-m", "examples.otto_sessions.train"]],
        "ddp_sessions": [
            [*CONSOLE, "synth", train, "--rows", "100000", "--row-group-rows", "4000", "--quiet"],
            [*CONSOLE, "synth", val, "--rows", "10000", "--row-group-rows", "2000", "--seed", "1", "--quiet"],
            [*CONSOLE, "fit", "--config", config, *SESSIONS, *data],
        ],
        "overlapped_tables": [[*CONSOLE, "fit", "--config", tables, "--trainer.devices", "2", *data]],  # same data
        "ray_lanes": [[sys.executable, "-m", "examples.ray_lanes.run"]],
        "notebook": [[sys.executable, "-c", code_of(ROOT / "examples" / "notebook" / "tuning.ipynb")]],
        "custom_agent": [[sys.executable, "-m", "examples.custom_agent.drive"]],
    }


def code_of(notebook: Path) -> str:
    """Its cells of code, from top to bottom."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def main() -> int:
    """Run those named on the command line, or all."""
    failed: list[str] = []
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        found = commands(Path(scratch))
        unknown = [name for name in sys.argv[1:] if name not in found]
        if unknown:
            print(f"examples: there is none named {unknown[0]!r}. Choose from: {', '.join(found)}.", file=sys.stderr)
            return 2
        for name in sys.argv[1:] or found:
            began_s = time.monotonic()
            print(f"== {name}", flush=True)
            for command in found[name]:
                if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
                    failed.append(name)
                    break
            print(f"== {name}: {'FAILED, ' if name in failed else ''}{time.monotonic() - began_s:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
