"""Whatever a function raises, returns or does to its process: it comes through or is named, and nothing shifts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_intune.errors import stage_error
from tests.faults import odd
from tests.faults.ledger import Trial


@pytest.mark.parametrize(("what", "method"), odd.cases(), ids=lambda part: part.replace(" ", "-"))
def test_an_odd_function_costs_nothing_but_its_item(what: str, method: str, tmp_path: Path) -> None:
    trial = Trial(1, tmp_path)
    odd.try_one(trial, what, method)
    assert trial.broken == []


def test_an_error_of_memory_is_caught_as_one() -> None:
    with pytest.raises(MemoryError, match="stage 'decode': item 3 failed with MemoryError: full"):
        raise stage_error("decode", 3, MemoryError("full"))
