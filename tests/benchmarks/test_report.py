"""docs/benchmarks.md says what the committed results say, and claims nothing beyond them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import NAMES, PAGE, RESULTS, command_of, page, results
from benchmarks.targets import targets_of

pytest.importorskip("torchrec")  # the table of `train` comes with its models


def test_the_page_is_what_the_committed_results_make() -> None:
    assert PAGE.read_text() == page(results()), "run python -m benchmarks.report"


def test_every_result_has_its_place_on_the_page() -> None:
    of_readme = {"overhead", "tuner", "dedup", "balance", "overlap"}
    assert {path.stem for path in RESULTS.glob("*.json")} - of_readme <= set(NAMES)


def test_a_command_names_its_workload() -> None:
    assert command_of("peers-udf") == "python -m benchmarks.peers --workload udf --json"
    assert command_of("scale") == "python -m benchmarks.scale --json"


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert "No results are there yet." in page(results(tmp_path))


@pytest.mark.parametrize(("others", "warns"), [(0.02, False), (0.4, True), (None, True)])
def test_a_machine_with_other_work_is_named(others: float | None, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scale.table", lambda _: "the table")
    machine = {"cpu": "x", "cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
    if others is not None:
        machine["used_by_others"] = others
    shown = report.page({"scale": {"machine": machine, "date": "2026-01-01", "quick": False}})
    assert ("not quiet" in shown) == warns
    assert "the table" in shown


@pytest.mark.parametrize(
    ("value", "interval", "is_met"), [(1.2, [1.1, 1.3], True), (0.98, [0.95, 1.01], True), (0.9, [0.8, 0.99], False)]
)
def test_a_ratio_of_one_is_met_unless_its_interval_lies_below(
    value: float, interval: list[float], is_met: bool
) -> None:
    (target,) = targets_of("peers-udf", {"ratio_best_peer": value, "ratio_best_peer_ci": interval})
    assert target.is_met == is_met


def test_other_ratios_are_met_by_their_median_only() -> None:
    figures = {"ratio_best_peer": 1.69, "ratio_best_peer_ci": [1.6, 1.8], "ratio_dataloader": 3.0}
    assert [target.is_met for target in targets_of("peers-remote", figures)] == [False, True]


def test_memory_is_held_against_the_dataloader() -> None:
    figures = {"peak_pss_mb": 120.0, "peers": {"dataloader": {"peak_pss_mb": 100.0}}}
    (target,) = targets_of("scale", figures)
    assert (target.shown, target.is_met) == ("120 of 100 MiB", False)


def test_results_are_read_in_the_pages_order(tmp_path: Path) -> None:
    for name in ("train", "peers-local"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    assert list(results(tmp_path)) == ["peers-local", "train"]
