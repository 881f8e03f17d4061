"""Weights, widths and states from strangers execute nothing: no file is unpickled, and YAML makes no objects."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import yaml

import lightning_intune
from lightning_intune.control.weight_file import load_weights
from lightning_intune.control.widths_file import load_widths
from lightning_intune.errors import ConfigError

PACKAGE = Path(lightning_intune.__file__).parent

# Where values cross between processes of one job; none of these reads a file that somebody else may have written.
BETWEEN_OUR_PROCESSES = {
    "flow/lanes/wire.py", "flow/lanes/child.py", "flow/lanes/function.py", "flow/lanes/server.py",
    "flow/lanes/forking.py", "flow/lanes/ray.py", "balance/round.py",
}  # fmt: skip
UNSAFE = {
    ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("cloudpickle", "load"), ("cloudpickle", "loads"),
    ("marshal", "load"), ("marshal", "loads"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
    ("joblib", "load"), ("shelve", "open"), ("torch", "load"), ("np", "load"), ("numpy", "load"), ("dill", "loads"),
}  # fmt: skip


class Bomb:
    """Executes as it is unpickled."""

    went_off = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Bomb, "went_off", True)


def unsafe_calls(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in UNSAFE
        ):
            found.add(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and any((node.module, alias.name) in UNSAFE for alias in node.names):
            found.add(f"from {node.module}")
    return found


def test_nothing_but_the_lanes_and_the_ranks_own_messages_is_unpickled() -> None:
    places = {
        str(path.relative_to(PACKAGE)): calls
        for path in sorted(PACKAGE.rglob("*.py"))
        if (calls := unsafe_calls(path.read_text()))
    }
    assert set(places) <= BETWEEN_OUR_PROCESSES, places


def test_the_check_above_sees_what_it_looks_for() -> None:
    assert unsafe_calls("import pickle\npickle.load(f)") == {"pickle.load"}
    assert unsafe_calls("from torch import load") == {"from torch"}
    assert unsafe_calls("yaml.safe_load(f)") == set()


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.pt", "policy"])
def test_weights_that_are_a_pickle_are_refused_and_not_executed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError):
        load_weights(path, 9)
    assert not Bomb.went_off


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "stages: !!python/object/apply:os.system ['touch {marker}']",
        "{unclosed",
        "- a\n- b",
        "read: [1, 2]",
        "\x00",
    ],
)
def test_widths_make_no_objects_and_run_nothing(text: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "widths.yaml"
    path.write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ConfigError):
        load_widths(path)
    assert not marker.exists()
    assert yaml.safe_load("a: 1") == {"a": 1}
