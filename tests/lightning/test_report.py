"""What the end of a run tells a user to do next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from lightning_intune.report import advice, findings, layout, limits, scalars, stage_figure, table
from tests.lightning.meters import stage_stats, window


@dataclass(frozen=True)
class Stage:
    name: str
    busy_share: float
    blocked_share: float = 0.0
    starved_share: float = 0.0
    cpu_share: float = 0.5
    width: int = 2


@dataclass(frozen=True)
class Turn:
    wait_share: float
    roofline_share: float
    stages: tuple[Stage, ...] = (Stage("read", 0.9), Stage("transform", 0.3))
    widths: dict[str, int] = field(default_factory=dict)
    samples_per_s: float = 100.0
    roofline_samples_per_s: float = 200.0
    reward: float = 0.5
    memory_bytes: int = 10


def test_a_trainer_that_hardly_waits_is_what_limits() -> None:
    assert advice(Turn(0.06, 0.6)).startswith("The trainer limits")


def test_stages_that_wait_for_room_do_not_limit_a_trainer_that_waits_a_little() -> None:
    idle = (
        Stage("read", 0.0),
        Stage("transform", 0.2, blocked_share=0.74),
        Stage("prefetch", 0.01, blocked_share=0.98),
    )
    assert limits(Turn(0.2, 0.9, stages=idle)) == "trainer"
    assert advice(Turn(0.2, 0.9, stages=idle)).startswith("No stage limits: all of them wait for room.")
    assert limits(Turn(0.6, 0.9, stages=idle)) == "transform"


def test_near_the_roofline_the_dearest_stage_is_named() -> None:
    text = advice(Turn(0.5, 0.9))
    assert text.startswith("The CPUs limit, and 'read' uses most")


def test_far_below_the_roofline_the_stage_waits_for_something_else() -> None:
    text = advice(Turn(0.5, 0.3))
    assert text.startswith("Stage 'read' limits with CPUs to spare")


def test_without_a_turn_there_is_nothing_to_advise() -> None:
    assert advice(replace(Turn(0.5, 0.3), stages=())).startswith("No turn was measured")


def test_every_tag_of_the_layout_is_logged() -> None:
    logged = scalars(Turn(0.5, 0.3), "clicks")
    charts: dict[str, Any] = layout(["read", "transform"], "clicks")["lightning_intune clicks"]
    assert {tag for _, tags in charts.values() for tag in tags} <= set(logged)


def test_the_table_names_every_stage_who_limits_and_what_to_do() -> None:
    lines = table(Turn(0.5, 0.3)).splitlines()
    assert lines[:4] == [
        "| stage     | workers | busy | starved | blocked | of the CPUs |",
        "| --------- | ------- | ---- | ------- | ------- | ----------- |",
        "| read      | 2       | 90%  | 0%      | 0%      | 50%         |",
        "| transform | 2       | 30%  | 0%      | 0%      | 50%         |",
    ]
    assert lines[5] == "100 samples/s, 30% of what the CPUs could deliver; the trainer waited 50% of its time."
    assert lines[6].startswith("Stage 'read' limits")


def test_the_figure_paints_only_who_limits_red() -> None:
    pytest.importorskip("matplotlib")
    for turn, limit in ((Turn(0.5, 0.3), "read"), (Turn(0.02, 0.3), "trainer")):
        [axes] = stage_figure(turn).axes
        names = [text.get_text().splitlines()[0] for text in axes.texts if text.get_text()]
        red = [box.get_facecolor()[0] > 0.5 for box in axes.patches]
        assert names == ["read", "transform", "trainer"]
        assert [name for name, is_red in zip(names, red, strict=True) if is_red] == [limit] == [limits(turn)]


def test_findings_are_shares_of_a_window() -> None:
    # In 10 s with 2 CPUs: 3 s of CPU for 300 samples, so 2 CPUs could deliver 200 a second; 30 were.
    stages = (stage_stats("read", busy_s=6, starved_s=2, blocked_s=2, cpu_s=2), stage_stats("join", busy_s=1, cpu_s=1))
    found = findings(window(10, num_samples=300, wait_s=4, stages=stages), cpus=2)
    assert [stage.busy_share for stage in found.stages] == [0.6, 1.0]
    assert [stage.cpu_share for stage in found.stages] == [0.1, 0.05]
    assert (found.samples_per_s, found.roofline_samples_per_s, found.wait_share) == (30, 200, 0.4)
    assert found.roofline_share == 0.15
    assert limits(found) == "join"
