"""What importing the package costs: counted in modules, not in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torchrec", "fbgemm_gpu", "ray", "numba", "duckdb", "matplotlib", "stable_baselines3", "tensorboard", "rich"}


def imported_by(statement: str, *, after: str) -> set[str]:
    """The modules that `statement` brings in, in a process that has done `after`."""
    script = f"import json, sys\n{after}\nbefore = set(sys.modules)\n{statement}\n"
    script += "print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_two_files_of_it_and_nothing_else() -> None:
    came = imported_by("import lightning_intune", after="")
    ours = {name for name in came if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours == {"lightning_intune", "lightning_intune.lazy"}


def test_the_public_names_bring_no_extra_along() -> None:
    names = "from lightning_intune import InTuneCallback, InTuneDataModule, ElasticLoader, elastic"
    came = imported_by(names, after="import torch, lightning.pytorch")
    assert "lightning_intune.callback" in came
    assert {name.partition(".")[0] for name in came} & HEAVY == set()
