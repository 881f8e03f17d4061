"""What was asked of each benchmark on two cores, and whether its figures meet it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, kw_only=True)
class Target:
    """One figure, and what it should be."""

    text: str
    shown: str
    is_met: bool


# (key, what it is, at least)
_RATIOS = {
    "peers-local": [("ratio_best_peer", "the best peer", 1.0), ("ratio_dataloader", "DataLoader", 1.8)],
    "peers-remote": [("ratio_best_peer", "the best peer", 1.7), ("ratio_dataloader", "DataLoader", 3.0)],
    "peers-udf": [("ratio_best_peer", "the best peer", 1.0)],
    "peers-sessions": [
        ("ratio_best_peer", "the best peer on rows", 3.8),
        ("ratio_dataloader", "DataLoader on rows", 8.0),
        ("ratio_best_peer_session_layout", "the best peer on the session layout", 1.0),
    ],
    "train": [("ratio_dataloader", "DataLoader, sequence model", 2.5)],
}


def targets_of(name: str, figures: dict[str, Any]) -> list[Target]:
    """The targets of the benchmark `name` that its figures can answer.

    >>> figures = {"ratio_best_peer": 0.99, "ratio_best_peer_ci": [0.97, 1.01], "seconds_to_95pct": 16.0}
    >>> [(target.text, target.is_met) for target in targets_of("peers-udf", figures)]
    [('at least 1.0x the best peer', True), ('95 % of its rate within 15 s', False)]
    """
    found: list[Target] = []
    for key, what, least in _RATIOS.get(name, []):
        if key in figures:
            found.append(_ratio(figures[key], figures.get(f"{key}_ci"), what, least))
    if name == "peers-local" and "roofline_share" in figures:
        share = figures["roofline_share"]
        found.append(Target(text="at least 93 % of the roofline", shown=f"{share:.1%}", is_met=share >= 0.93))
    if "seconds_to_95pct" in figures:
        seconds = figures["seconds_to_95pct"]
        found.append(Target(text="95 % of its rate within 15 s", shown=f"{seconds:.1f} s", is_met=seconds <= 15.0))
    rival = figures.get("peers", {}).get("dataloader")
    if rival is not None:
        ours, theirs = figures["peak_pss_mb"], rival["peak_pss_mb"]
        shown = f"{ours:,.0f} of {theirs:,.0f} MiB"
        found.append(Target(text="peak memory at most DataLoader's", shown=shown, is_met=ours <= theirs))
    for model, of_model in figures.get("models", {}).items():
        share = of_model["data_wait_share"]
        found.append(Target(text=f"{model} waits for data under 3 %", shown=f"{share:.1%}", is_met=share < 0.03))
    return found


def _ratio(value: float, interval: list[float] | None, what: str, least: float) -> Target:
    """A ratio of 1.0 is met when its paired 95 % interval is not wholly below 1."""
    reached = interval[1] if interval is not None and least == 1.0 else value
    return Target(text=f"at least {least:.1f}x {what}", shown=f"{value:.2f}x", is_met=reached >= least)
