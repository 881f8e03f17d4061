"""docs/errors.md: its example runs, and every test and scenario it names exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text()
NAMED = list(dict.fromkeys(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda part: part.removeprefix("tests/"))
def test_what_the_page_names_exists(file: str, name: str) -> None:
    names = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in names


def test_the_example_says_what_it_prints(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[1, 2, 4] 2 1\n"
    assert (tmp_path / "bad.jsonl").read_text().count("\n") == 1


def test_every_scenario_of_the_soak_is_on_the_page() -> None:
    from tests.faults.scenarios import SCENARIOS

    functions = {scenario.run.__name__ for scenario in SCENARIOS}
    elsewhere = {"hostile_files", "remote_storage"}  # named by their tests
    variants = {"unordered_resizes", "resized_processes", "cuts"}
    assert functions - {name for _, name in NAMED} == elsewhere | variants
