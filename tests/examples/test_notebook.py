"""The notebook runs top to bottom, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook" / "tuning.ipynb"


def test_the_notebook_runs_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")  # none is kept in the repository
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("SECONDS = 3.0" in cell for cell in code) == 1
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(code).replace("SECONDS = 3.0", "SECONDS = 0.5"))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "found: {'read': " in done.stdout
