"""Widths as YAML: what one run found, and the next begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_intune.errors import ConfigError


def save_widths(path: Path, widths: Mapping[str, int]) -> None:
    """Write one line per stage, in the order given."""
    import yaml

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(widths), sort_keys=False), encoding="utf-8")


def load_widths(path: Path) -> dict[str, int]:
    """The widths in `path`; ConfigError when it is missing or holds anything but stages and whole numbers."""
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"warm_start: {path} cannot be read as YAML ({error}). Give a file as a former run wrote it, "
            "intune_widths.yaml, or a dict of widths by stage."
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"warm_start: {path} holds no stages. It should have lines like 'decode: 4'.")
    for stage, width in found.items():  # pyright: ignore[reportUnknownVariableType] - checked here
        if not isinstance(stage, str) or not isinstance(width, int) or isinstance(width, bool):
            raise ConfigError(f"warm_start: {path} gives {stage!r} the width {width!r}. Lines should be 'decode: 4'.")
    return found  # pyright: ignore[reportUnknownVariableType]
