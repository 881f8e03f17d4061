"""Rows that several tests of `cluster` read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_intune.dedup.etl.synth import SynthSpec, write_synth


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine days of shuffled rows."""
    path = tmp_path_factory.mktemp("days") / "in.parquet"
    return write_synth(SynthSpec(num_rows=4_000, order="shuffled", num_days=9), path)
