"""One turn of the tuner on record: what it saw, chose and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_intune.control.action import MOVES, PLAIN_MOVES
from lightning_intune.control.agent import Choice
from lightning_intune.control.guard import Why


@final
@dataclass(frozen=True, kw_only=True)
class StageView:
    """One stage in one turn. Shares are of its workers' time, in [0, 1]; `cpu_share` of the budget's CPUs."""

    name: str
    width: int
    asked: int
    proposal: int
    best: int
    busy_share: float
    starved_share: float
    blocked_share: float
    run_delay_share: float
    cpu_share: float
    move: str | None
    q: float | None
    """Advantage of the chosen move over the mean legal one; None without a network."""
    num_legal_moves: int | None


@final
@dataclass(frozen=True, kw_only=True)
class Decision:
    """One turn. `widths` were live while it was measured, `asked` are asked for after it."""

    turn: int
    time_s: float
    """The tuner's clock when the turn was closed."""
    turn_s: float
    """How long the turn was measured."""
    widths: dict[str, int]
    asked: dict[str, int]
    samples_per_s: float
    roofline_samples_per_s: float
    """What the budget's CPUs could deliver at the present CPU cost of a sample; 0 while unknown."""
    roofline_share: float
    wait_share: float
    reward: float
    """For the widths of this turn."""
    why: str
    """One of `Why` in lower case: moved, held, reverted, resting, taboo, memory, blind, explored, fewer."""
    shifted: bool
    """Whether costs, CPUs or memory were found to have changed."""
    cpus: float
    cpu_used: float
    memory_bytes: int
    memory_limit_bytes: int
    stages: tuple[StageView, ...]
    lanes: dict[str, str] = field(default_factory=dict[str, str])
    """Stages of `method="auto"` moved in this turn, to `process` or `thread`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: safe for JSON and for checkpoints."""
        # By hand: dataclasses.asdict takes ten times as long, and the training thread waits.
        copies = {"widths": dict(self.widths), "asked": dict(self.asked), "lanes": dict(self.lanes)}
        return vars(self) | copies | {"stages": [dict(vars(stage)) for stage in self.stages]}


@final
class DecisionLog:
    """Appends decisions to a JSON-lines file, one line a turn, written at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self._path.parent

    def write(self, decision: Decision, loader: str = "") -> None:
        """Append one line; `loader` names the loader it is about, "" for training's single one."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"loader": loader, **decision.as_dict()}) + "\n")


def stage_views(names: list[str], choice: Choice) -> tuple[StageView, ...]:
    """The stages of a single pipeline's choice (B = 1)."""
    situation, wish = choice.situation, choice.wish
    reading = situation.reading
    width = np.maximum(reading.width[0], 1e-9)
    views: list[StageView] = []
    for at, name in enumerate(names):
        move, q, num_legal = None, None, None
        if wish.q is not None and wish.moves is not None:
            row, chosen = wish.q[0, at], int(wish.moves[0, at])
            known = MOVES if len(row) == len(MOVES) else PLAIN_MOVES
            move, num_legal = known[chosen], int(np.isfinite(row).sum())
            q = float(row[chosen]) if np.isfinite(row[chosen]) else None
        views.append(
            StageView(
                name=name,
                width=int(reading.width[0, at]),
                asked=int(choice.widths[0, at]),
                proposal=int(situation.proposal.widths[0, at]),
                best=int(situation.best_widths[0, at]),
                busy_share=float(min(1.0, reading.busy[0, at] / width[at])),
                starved_share=float(min(1.0, reading.starved[0, at] / width[at])),
                blocked_share=float(min(1.0, reading.blocked[0, at] / width[at])),
                run_delay_share=float(min(1.0, reading.run_delay[0, at] / width[at])),
                cpu_share=float(reading.cpu[0, at] / max(float(reading.cpus[0]), 1e-9)),
                move=move,
                q=q,
                num_legal_moves=num_legal,
            )
        )
    return tuple(views)


def why_text(choice: Choice) -> str:
    """`Why` in lower case; a move made for its novelty is `explored`."""
    why = Why(int(choice.why[0]))
    if why is Why.MOVED and choice.wish.explored is not None and bool(choice.wish.explored[0]):
        why = Why.EXPLORED
    return why.name.lower()
