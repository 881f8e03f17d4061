"""README's table says what the benchmarks' files say, and no more."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_figures", ROOT / "tools" / "readme_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["readme_figures"] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


MACHINE = {"machine": {"cpu": "Abacus", "cores": 2}}


def test_a_figure_stands_beside_the_command_that_makes_it(tool: ModuleType) -> None:
    made = tool.table({"peers-remote": {**MACHINE, "ratio_best_peer": 1.834}})
    assert "| 1.83x | `python -m benchmarks.peers --workload remote --json` |" in made
    assert made.count("\n| ") == 1  # figures that nobody measured have no line
    assert "Abacus, 2 cores" in made


def test_quick_runs_and_absent_files_give_no_figure(tool: ModuleType) -> None:
    assert tool.table({}) == tool.NONE_YET
    assert tool.table({"train": {**MACHINE, "quick": True, "ratio_dataloader": 9.0}}) == tool.NONE_YET


def test_only_what_is_between_the_marks_changes(tool: ModuleType) -> None:
    readme = f"a\n{tool.BEGIN}\nold\n{tool.END}\nb\n"
    assert tool.filled(readme, "new") == f"a\n{tool.BEGIN}\n\nnew\n\n{tool.END}\nb\n"
    with pytest.raises(ValueError, match="lacks the marks"):
        tool.filled("a\n", "new")


def test_the_readme_has_the_marks(tool: ModuleType) -> None:
    tool.filled((ROOT / "README.md").read_text(), "")
