"""The example with a DataLoader: three lines are changed, and no loss is."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from examples.existing_dataloader.__main__ import compare

EXAMPLE = Path(__file__).parents[2] / "examples" / "existing_dataloader"

pytestmark = [pytest.mark.filterwarnings("ignore:.*LeafSpec.*"), pytest.mark.filterwarnings("ignore:.*many workers.*")]


def changed_lines() -> list[str]:
    """Of `after.py` against `before.py`, less what the files say about themselves in their first line."""
    before, after = ((EXAMPLE / name).read_text().splitlines()[1:] for name in ("before.py", "after.py"))
    return [line for line in difflib.ndiff(before, after) if line[0] in "+-"]


def test_three_lines_are_changed() -> None:
    assert [line for line in changed_lines() if line[0] == "+"] == [
        "+ from lightning_intune import InTuneCallback, elastic",
        "+     loader = elastic(DataLoader(Pictures(pictures), batch_size=32, shuffle=True))",
        "+         callbacks=[InTuneCallback()],",
    ]
    assert len([line for line in changed_lines() if line[0] == "-"]) == 1


def test_the_readme_shows_the_lines_that_are_changed() -> None:
    shown = (EXAMPLE / "README.md").read_text()
    for line in changed_lines():
        assert f"\n{line[0]}{line[2:]}\n" in shown


def test_the_losses_of_every_step_stay_what_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = compare(tmp_path, num_pictures=200, max_epochs=2)
    assert len(before) == 2 * 7
    assert after == before
    assert "every loss is equal" in capsys.readouterr().out
