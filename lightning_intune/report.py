"""Stats and decisions -> what people look at: logger scalars, TensorBoard's layout, the end-of-fit table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from lightning_intune.balance.bubble import BubbleStats
from lightning_intune.meters import FlowStats

PREFIX = "intune"
_TRAINER_LIMITS_BELOW = 0.1  # of its time waited for data
_AT_ROOFLINE = 0.8
_SHOWN_RANKS = 16  # of which each has a curve of its own


class StageLike(Protocol):
    """The parts of a stage's record in a decision that are drawn."""

    name: str
    width: int
    busy_share: float
    starved_share: float
    blocked_share: float
    cpu_share: float


class DecisionLike(Protocol):
    """The parts of a decision that are drawn; `lightning_intune.control.Decision` has them."""

    @property
    def widths(self) -> Mapping[str, int]: ...
    @property
    def samples_per_s(self) -> float: ...
    @property
    def roofline_samples_per_s(self) -> float: ...
    @property
    def roofline_share(self) -> float: ...
    @property
    def wait_share(self) -> float: ...
    @property
    def reward(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def stages(self) -> Sequence[Any]: ...


def scalars(decision: DecisionLike, loader: str = "") -> dict[str, float]:
    """One turn as logger scalars; `loader` names the loader where there are several."""
    head = f"{PREFIX}/{loader}/" if loader else f"{PREFIX}/"
    values = {
        f"{head}samples_per_s": decision.samples_per_s,
        f"{head}roofline_samples_per_s": decision.roofline_samples_per_s,
        f"{head}roofline_share": decision.roofline_share,
        f"{head}data_wait_share": decision.wait_share,
        f"{head}reward": decision.reward,
        f"{head}memory_bytes": float(decision.memory_bytes),
    }
    for stage in decision.stages:
        values[f"{head}width/{stage.name}"] = float(stage.width)
        for share in ("busy", "starved", "blocked", "cpu"):
            values[f"{head}{share}_share/{stage.name}"] = getattr(stage, f"{share}_share")
        values[f"{head}advantage/{stage.name}"] = getattr(stage, "q", None) or 0.0  # no network, no advantage
    return values


def bubble_scalars(stats: BubbleStats, loader: str = "") -> dict[str, float]:
    """A window of steps of balanced ranks as logger scalars: bubbles planned and measured, who waited and for whom."""
    head = f"{PREFIX}/{loader}/bubble/" if loader else f"{PREFIX}/bubble/"
    waits = {f"{head}wait_s/rank{rank}": wait_s for rank, wait_s in enumerate(stats.wait_s[:_SHOWN_RANKS])}
    return {
        f"{head}planned": stats.planned,
        f"{head}measured": stats.measured,
        f"{head}waited_rank": float(stats.waited),
        f"{head}waited_for_rank": float(stats.waited_for),
        f"{head}waited_s": stats.wait_s[stats.waited],
        **waits,
    }


def bubble_charts(num_ranks: int, loader: str = "") -> dict[str, list[Any]]:
    """The charts of `bubble_scalars`, for a page of `layout`."""
    head = f"{PREFIX}/{loader}/bubble/" if loader else f"{PREFIX}/bubble/"
    waits = [f"{head}wait_s/rank{rank}" for rank in range(min(num_ranks, _SHOWN_RANKS))]
    return {
        "bubble: planned and measured": ["Multiline", [f"{head}planned", f"{head}measured"]],
        "bubble: the rank that waited, and for whom": ["Multiline", [f"{head}waited_rank", f"{head}waited_for_rank"]],
        "bubble: seconds waited, by rank": ["Multiline", waits],
    }


def layout(stages: Iterable[str], loader: str = "") -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars page for one loader: what belongs together in one chart."""
    head = f"{PREFIX}/{loader}/" if loader else f"{PREFIX}/"
    names = list(stages)

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"{head}{tag}" for tag in tags]]

    charts = {
        "throughput and roofline": chart("samples_per_s", "roofline_samples_per_s"),
        "data wait": chart("data_wait_share"),
        "roofline share": chart("roofline_share"),
        "widths": chart(*(f"width/{name}" for name in names)),
        "reward": chart("reward"),
        "Q: advantage of the chosen move": chart(*(f"advantage/{name}" for name in names)),
        "memory": chart("memory_bytes"),
    }
    for name in names:
        charts[f"stage {name}"] = chart(*(f"{share}_share/{name}" for share in ("busy", "starved", "blocked")))
    return {f"lightning_intune{' ' + loader if loader else ''}": charts}


@final
@dataclass(frozen=True, kw_only=True)
class StageShare:
    """One stage over a whole run; shares are of its workers' time, `cpu_share` of the CPUs there are."""

    name: str
    width: int
    busy_share: float
    starved_share: float
    blocked_share: float
    cpu_share: float


@final
@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a window of the meters shows."""

    stages: tuple[StageShare, ...]
    samples_per_s: float
    roofline_samples_per_s: float
    wait_share: float
    """Of the trainer's time, waiting for data."""

    @property
    def roofline_share(self) -> float:
        """In [0, 1]; 0 while no CPU was metered."""
        bound = self.roofline_samples_per_s
        return min(1.0, self.samples_per_s / bound) if 0 < bound < float("inf") else 0.0


def findings(window: FlowStats, cpus: float) -> Findings:
    """The meters of a window (`FlowStats.since`) as shares."""
    stages: list[StageShare] = []
    for stage in window.stages:
        total_s = max(stage.busy_s + stage.starved_s + stage.blocked_s, 1e-9)
        stages.append(
            StageShare(
                name=stage.name,
                width=stage.live_workers or stage.target_workers,
                busy_share=stage.busy_s / total_s,
                starved_share=stage.starved_s / total_s,
                blocked_share=stage.blocked_s / total_s,
                cpu_share=stage.cpu_s / max(window.time_s * cpus, 1e-9),
            )
        )
    return Findings(
        stages=tuple(stages),
        samples_per_s=window.samples_per_s,
        roofline_samples_per_s=window.roofline_samples_per_s(cpus),
        wait_share=window.wait_share,
    )


def limits(found: DecisionLike | Findings) -> str | None:
    """Who limits: a stage's name, or "trainer"; None before anything was measured."""
    if not found.stages:
        return None
    if found.wait_share < _TRAINER_LIMITS_BELOW:
        return "trainer"
    worst = max(found.stages, key=lambda stage: stage.busy_share - stage.blocked_share if stage.busy_share > 0 else -1)
    # Where even that stage waits for room more than it works, what little the trainer waits is the handing over.
    return "trainer" if worst.blocked_share > worst.busy_share and found.wait_share < 0.5 else worst.name


def advice(found: DecisionLike | Findings) -> str:
    """What limits now, and what to do next, in one or two sentences."""
    limit = limits(found)
    if limit is None:
        return "No turn was measured: the run was shorter than one turn."
    if limit == "trainer" and found.wait_share >= _TRAINER_LIMITS_BELOW:
        return (
            "No stage limits: all of them wait for room. What the trainer waited for is the start of the run and the "
            "handing over of batches: a longer run tells more, larger batches are handed over less often."
        )
    if limit == "trainer":
        return "The trainer limits: data is ready, or nearly, when it asks. A faster model or device would be used."
    if found.roofline_share >= _AT_ROOFLINE:
        return (
            f"The CPUs limit, and '{limit}' uses most of what it has: make it cheaper per sample, "
            "or give the job more CPUs."
        )
    return (
        f"Stage '{limit}' limits with CPUs to spare: it waits for something else than a core "
        "(storage, the GIL). Try method='process' if its function is pure Python, or faster storage."
    )


def table(found: DecisionLike | Findings) -> str:
    """The end-of-fit table: each stage, the whole, what limits and what to do. Plain text, and Markdown."""
    if not found.stages:
        return advice(found)
    rows: list[tuple[str, ...]] = [("stage", "workers", "busy", "starved", "blocked", "of the CPUs")]
    for stage in found.stages:
        shares = (stage.busy_share, stage.starved_share, stage.blocked_share, stage.cpu_share)
        rows.append((stage.name, str(stage.width), *(f"{share:.0%}" for share in shares)))
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * size for size in sizes))
    lines = ["| " + " | ".join(text.ljust(size) for text, size in zip(row, sizes, strict=True)) + " |" for row in rows]
    known = found.roofline_share > 0
    whole = f"{found.samples_per_s:,.0f} samples/s" + (
        f", {found.roofline_share:.0%} of what the CPUs could deliver" if known else ""
    )
    return "\n".join([*lines, "", f"{whole}; the trainer waited {found.wait_share:.0%} of its time.", advice(found)])


def stage_figure(found: DecisionLike | Findings) -> Any:
    """The graph of stages as a matplotlib figure: red limits, the fuller the blue the busier.

    ImportError without matplotlib: `pip install 'lightning-intune[plots]'`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    limit = limits(found)
    boxes = [
        (
            stage.name,
            f"{stage.width} worker{'s' * (stage.width != 1)}, busy {stage.busy_share:.0%}, "
            f"blocked {stage.blocked_share:.0%}",
            stage.busy_share,
        )
        for stage in found.stages
    ]
    boxes.append(
        ("trainer", f"{found.samples_per_s:,.0f} samples/s, waits {found.wait_share:.0%}", 1 - found.wait_share)
    )
    # As wide as TensorBoard's cards, which shrink what is wider until nobody can read it.
    figure = Figure(figsize=(3.0, 0.62 * len(boxes)), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(boxes), 0)
    for at, (name, text, busy) in enumerate(boxes):
        colour = (0.85, 0.25, 0.2, 0.9) if name == limit else (0.2, 0.4, 0.75, 0.15 + 0.6 * min(1.0, busy))
        box = FancyBboxPatch((0.04, at + 0.14), 0.92, 0.66, boxstyle="round,pad=0,rounding_size=0.03", facecolor=colour)
        axes.add_patch(box)
        ink = "white" if name == limit else "black"
        axes.text(0.5, at + 0.47, f"{name}\n{text}", ha="center", va="center", fontsize=9, color=ink)
        if at > 0:
            axes.annotate("", (0.5, at + 0.15), (0.5, at - 0.21), arrowprops={"arrowstyle": "-|>"})
    return figure
