"""Draw the two flows and the wall between them, from the code: docs/images/two_flows.svg.

Which packages are data and which decisions say the import contracts in pyproject.toml; the arrows are the imports that
there are; nodes, stages, agents and fields are those of the classes. Nothing is imported, only read.

python tools/draw_flows.py          # writes it
python tools/draw_flows.py --check  # exits 1 where it is no longer what the code says
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import final

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lightning_intune"
PICTURE = ROOT / "docs" / "images" / "two_flows.svg"
INK, MUTED, DATA, DECISIONS, WINDOW = "#1f2430", "#6b7280", "#2f5bb7", "#c2571a", "#2a7f62"


@final
@dataclass(frozen=True, kw_only=True)
class Flows:
    """What the picture shows, as read from the code."""

    data: list[str]
    """Packages that never import decisions."""
    decisions: list[str]
    lightning: list[str]
    """Modules that may import Lightning."""
    imports: set[tuple[str, str]]
    """(who, whom), by top-level names."""
    stages: list[str]
    nodes: list[str]
    """Those that packages give out by name."""
    agents: list[str]
    meters: list[str]
    """Fields of `StageStats`."""
    knobs: list[str]
    """Fields of `Knob`."""


def read(package: Path = PACKAGE, settings: Path = ROOT / "pyproject.toml") -> Flows:
    """The flows as the code has them. KeyError or StopIteration where a class or contract went elsewhere."""
    contracts = tomllib.loads(settings.read_text())["tool"]["importlinter"]["contracts"]
    walls = [contract for contract in contracts if contract["type"] == "forbidden"]
    data = next(wall for wall in walls if f"{package.name}.control" in wall["forbidden_modules"])
    light = next(wall for wall in walls if "lightning" in wall["forbidden_modules"])
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    classes = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    public = {name.asname for path, tree in trees.items() if path.name == "__init__.py" for name in _aliases(tree)}
    return Flows(
        data=[name.partition(".")[2] for name in data["source_modules"]],
        decisions=[name.partition(".")[2] for name in data["forbidden_modules"]],
        lightning=sorted({rule.partition(" ")[0].partition(".")[2] for rule in light["ignore_imports"]}),
        imports={(_top(path, package), name) for path, tree in trees.items() for name in _imported(tree, package.name)},
        stages=_values(trees, "_STAGES"),
        nodes=sorted(name for name, of in classes.items() if name in public and _is_node(of, classes)),
        agents=_values(trees, "AgentName"),
        meters=_fields(classes["StageStats"]),
        knobs=_fields(classes["Knob"]),
    )


def _top(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            yield from (name.name for name in node.names)


def _aliases(tree: ast.Module) -> Iterator[ast.alias]:
    """What a package's `__init__.py` gives out: `from x import Y as Y`."""
    yield from (name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names)


def _is_node(of: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether `Node` is among its ancestors."""
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in of.bases]
    names = [base.id for base in bases if isinstance(base, ast.Name)]
    return "Node" in names or any(name in classes and _is_node(classes[name], classes) for name in names)


def _fields(of: ast.ClassDef) -> list[str]:
    return [
        str(node.target.id) for node in of.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def _values(trees: dict[Path, ast.Module], name: str) -> list[str]:
    """The texts in the one assignment to `name`, a tuple or a `Literal`."""
    for node in (node for tree in trees.values() for node in tree.body):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", getattr(node, "name", None))]
        )
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(to, ast.Name) and to.id == name for to in targets):
            texts = [of.value for of in ast.walk(value) if isinstance(of, ast.Constant)]
            return [text for text in texts if isinstance(text, str)]
    raise KeyError(name)


# ---- drawing ----


def draw(flows: Flows) -> str:
    """The picture, as SVG."""
    parts = [*_chain(flows), *_wall(), *_sides(flows), *_windows(flows), *_lightning(flows)]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 560" font-family="sans-serif" font-size="13" '
        'role="img" aria-label="Data flows one way, decisions the other; they meet in meters.py and knobs.py">'
    )
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{MUTED}"/></marker></defs>'
    )
    made = "<!-- made by tools/draw_flows.py from the code; not to be edited -->"
    return "\n".join([head, made, marker, '<rect width="960" height="560" fill="white"/>', *parts, "</svg>"]) + "\n"


def _chain(flows: Flows) -> list[str]:
    places = ["Parquet", *flows.stages, "trainer"]
    step = 900 / len(places)
    parts = [_text(30, 24, "data flows this way: the stages of InTuneDataModule", DATA)]
    for i, place in enumerate(places):
        x = 30 + i * step
        parts += [_box(x, 36, step - 50, 40, DATA), _text(x + (step - 50) / 2, 61, place, INK, middle=True)]
        if i:
            parts.append(_arrow(x - 50, 56, x - 3, 56))
    return parts


def _wall() -> list[str]:
    line = f'<line x1="480" y1="104" x2="480" y2="440" stroke="{MUTED}" stroke-width="2" stroke-dasharray="7 5"/>'
    return [line, _text(480, 98, "the wall: neither side imports the other", MUTED, middle=True)]


def _sides(flows: Flows) -> list[str]:
    left = [" · ".join(f"{name}/" for name in flows.data), "", "nodes:", *_wrapped(flows.nodes, 38)]
    right = [" · ".join(f"{name}/" for name in flows.decisions), "", "agents:", *_wrapped(flows.agents, 36)]
    return [
        _box(30, 116, 290, 324, DATA), _text(44, 138, "DATA", DATA), *_lines(44, 160, left),
        _box(660, 116, 270, 324, DECISIONS), _text(674, 138, "DECISIONS", DECISIONS), *_lines(674, 160, right),
    ]  # fmt: skip


def _windows(flows: Flows) -> list[str]:
    parts = []
    for y, height, name, what, fields in (
        (120, 190, "meters", "numbers out", flows.meters), (330, 106, "knobs", "orders in", flows.knobs),
    ):  # fmt: skip
        parts += [
            f'<rect x="365" y="{y}" width="250" height="{height}" rx="6" fill="white" stroke="{WINDOW}"/>',
            _text(377, y + 20, f"{name}.py: {what}", WINDOW), *_lines(377, y + 40, _wrapped(fields, 38), size=11),
        ]  # fmt: skip
        middle = y + height / 2
        is_out = name == "meters"
        if any((package, name) in flows.imports for package in flows.data):
            parts.append(_arrow(322, middle, 362, middle) if is_out else _arrow(363, middle, 323, middle))
        if any((package, name) in flows.imports for package in flows.decisions):
            parts.append(_arrow(617, middle, 657, middle) if is_out else _arrow(658, middle, 618, middle))
    return parts


def _lightning(flows: Flows) -> list[str]:
    names = ", ".join(f"{name}.py" for name in flows.lightning)
    both = [
        name for name in flows.lightning if any((name, side) in flows.imports for side in flows.data + flows.decisions)
    ]
    parts = [
        _box(30, 480, 900, 56, INK), _text(44, 502, f"Lightning is imported by {names} only", INK),
        _text(44, 522, "between two steps the callback shows the meters to the tuner, and hands its orders on", MUTED),
    ]  # fmt: skip
    for x, sides in ((175, flows.data), (795, flows.decisions)):
        if any((name, side) in flows.imports for name in both for side in sides):
            parts.append(_arrow(x, 478, x, 443))
    return parts


def _wrapped(names: list[str], width: int) -> list[str]:
    return textwrap.wrap(", ".join(names), width)


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{colour}" fill-opacity="0.07" '
        f'stroke="{colour}"/>'
    )


def _text(x: float, y: float, text: str, colour: str, *, middle: bool = False, size: int = 13) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}"{anchor}>{escape(text)}</text>'


def _lines(x: float, y: float, lines: list[str], *, size: int = 13) -> list[str]:
    return [_text(x, y + i * (size + 5), line, INK, size=size) for i, line in enumerate(lines) if line]


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line {ends} stroke="{MUTED}" stroke-width="2" marker-end="url(#tip)"/>'


def main() -> int:
    """Write the picture, or check it."""
    made = draw(read())
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(made)
        print(f"draw_flows: wrote {PICTURE.relative_to(ROOT)}")
        return 0
    if PICTURE.exists() and PICTURE.read_text() == made:
        return 0
    print(
        f"draw_flows: {PICTURE.relative_to(ROOT)} is not what the code says. Run: python tools/draw_flows.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
