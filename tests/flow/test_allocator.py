"""What a stage's function frees is used for its next item, unless someone has told glibc otherwise."""

from __future__ import annotations

import platform

import pytest

from lightning_intune.flow import allocator
from tests.started import told_by

IS_GLIBC = platform.libc_ver()[0] == "glibc"
TOUCHED_PAGES = 12_288


@pytest.mark.skipif(not IS_GLIBC, reason="other allocators have no mallopt")
@pytest.mark.timeout(60)
def test_freed_arrays_are_used_again_and_given_back_in_the_end() -> None:
    found = told_by("tests.flow.freed_memory")
    assert found["pages"] < 0.01 * TOUCHED_PAGES
    assert found["kept_mib"] < 30  # of 48 that were in use


@pytest.mark.skipif(not IS_GLIBC, reason="other allocators have no mallopt")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("own", ["MALLOC_TRIM_THRESHOLD_=1", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=1"])
def test_who_has_told_glibc_what_to_do_is_left_to_it(own: str) -> None:
    assert told_by("tests.flow.freed_memory", own)["pages"] > 0.05 * TOUCHED_PAGES


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_of_libc", lambda _: None)
    assert not allocator.keep_all_memory()
    allocator.give_back_memory()
