"""The scaling figures count every item and every row."""

from __future__ import annotations

import pytest

from benchmarks.scale import table
from benchmarks.scale_parts import stages as measured_stages
from benchmarks.scale_parts.files import files, streamed


def test_the_same_rows_come_out_of_however_many_files() -> None:
    found = files(300, (1, 7))
    assert list(found) == ["1", "7"]
    assert all(at["rows_per_s"] > 0 for at in found.values())


def test_a_stream_notes_memory_at_four_places() -> None:
    found = streamed(40_000)
    assert found["rows"] == 40_000
    assert list(found["rss_mib"]) == ["400", "4000", "20000", "40000"]


def test_every_width_and_size_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_stages, "LATENCY_S", 0.0)
    monkeypatch.setattr(measured_stages, "STAGES", (1, 3))
    monkeypatch.setattr(measured_stages, "ITEM_BYTES", (1, 4096))
    sizes = measured_stages.item_sizes(1 << 14)
    assert set(sizes) == {"1", "4096"}
    assert set(sizes["1"]) == {"thread_cpu_us", "thread_mb_per_s", "process_cpu_us", "process_mb_per_s"}
    stages = measured_stages.stages(200)
    assert set(stages) == {"1", "3"}
    shown = table(
        {
            "stages": stages,
            "widths": {"1": {"items_per_s": 49.0, "share_of_ideal": 0.98, "cpu_us_per_item": 40.0}},
            "item_bytes": sizes,
            "files": {"10": {"open_s": 0.1, "rows_per_s": 5.0, "cpu_ms_per_file": 1.0}},
            "streamed": {"rows": 5, "rows_per_s": 2.0, "rss_mib": {"5": 100.0}},
        }
    )
    assert "| 1 | 49 | 98.0% | 40.0 |" in shown
    assert "100 MiB after 5" in shown
