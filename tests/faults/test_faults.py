"""Every scenario of the soak once, and the harness itself: each planted bug must be seen by it."""

from __future__ import annotations

import pytest

from tests.faults.bugs import BUGS, Bug
from tests.faults.runner import Scenario, run_trial
from tests.faults.scenarios import SCENARIOS


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.name, marks=[pytest.mark.slow] if scenario.is_heavy else [])
        for scenario in SCENARIOS
    ],
)
def test_the_promise_holds(scenario: Scenario) -> None:
    outcome = run_trial(scenario, seed=1)
    assert outcome.broken == ()
    counts = outcome.counts
    assert counts.num_injected > 0
    assert counts.num_in == counts.num_once
    assert counts.num_named == counts.num_errors


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == bug.scenario)
    found = list[str]()
    timeout_s = 4.0 if bug.word == "hung" else 30.0  # a bug that hangs is waited for; a slow machine hides no other
    for seed in range(3):  # what depends on timing may need a second try, with the bug planted anew
        with monkeypatch.context() as patch, bug.plant(patch):
            found += run_trial(scenario, seed, timeout_s=timeout_s, grace_s=0.5).broken
        if any(bug.word in words for words in found):
            return
    pytest.fail(f"not seen; only {found}")
