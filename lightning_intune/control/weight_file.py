"""Weights on disk: safetensors only, so that loading a policy can never run code."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lightning_intune.control.qnet import Weights, check_weights
from lightning_intune.errors import ConfigError

FORMAT = "lightning_intune.qnet.2"


def save_weights(path: Path, weights: Weights, about: dict[str, str]) -> None:
    """Write `weights` with the facts in `about` (seed, settings, results)."""
    save_file(weights, str(path), metadata={"format": FORMAT, **about})


def load_weights(path: Path, num_moves: int) -> Weights:
    """The weights in `path`; ConfigError when the file is missing, not ours, damaged or of another version."""
    if not path.is_file():
        raise ConfigError(f"policy: there is no file {path}. Give an existing file, or none for the shipped weights.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            weights: dict[str, NDArray[np.float32]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"policy: {path} is not a safetensors file ({error}). "
            "Give one written by `lightning-intune pretrain`, or none for the shipped weights."
        ) from error
    if about.get("format") != FORMAT:
        raise ConfigError(
            f"policy: {path} has format {about.get('format')!r}, this version reads {FORMAT!r}. "
            "Remake it with `lightning-intune pretrain`."
        )
    check_weights(weights, num_moves)
    return weights


def shipped(name: str) -> Path:
    """Where the package keeps the weights called `name`."""
    return Path(str(resources.files("lightning_intune.control") / "weights" / f"{name}.safetensors"))
