"""What a stage's function frees is used for its next item, unless someone has told glibc otherwise."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest

from lightning_intune.flow import allocator
from tests.started import told_by

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOUCHED_PAGES = 12_288
TRIM, MMAP, ARENA = -1, -3, -8


class Libc:
    """A glibc that notes what it is told, and refuses mmap thresholds above `largest`."""

    def __init__(self, largest: int = 1 << 40) -> None:
        self.largest, self.told = largest, dict[int, int]()

    def mallopt(self, option: int, value: int) -> int:
        if option == MMAP and value > self.largest:
            return 0
        self.told[option] = value
        return 1


@pytest.fixture(autouse=True)
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no mallopt")
@pytest.mark.skipif(
    _HUGE_PAGES.is_file() and "[always]" in _HUGE_PAGES.read_text(), reason="huge pages make few faults of many"
)
@pytest.mark.timeout(60)
def test_freed_arrays_are_used_again() -> None:
    assert told_by("tests.flow.freed_memory")["pages"] < 0.01 * TOUCHED_PAGES


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1"), ("MALLOC_TOP_PAD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")],
)
def test_who_has_told_glibc_what_to_keep_is_left_to_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    monkeypatch.setenv(name, value)
    assert not allocator.keep_freed_memory.__wrapped__()
    assert libc.told == {}
    monkeypatch.delenv(name)
    assert allocator.keep_freed_memory.__wrapped__()
    assert libc.told == {MMAP: 32 << 20, TRIM: 256 << 20}


def test_what_an_old_glibc_refuses_keeps_a_process_lane_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc(largest=32 << 20)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: libc)
    assert not allocator.keep_all_memory()
    assert libc.told == {MMAP: 32 << 20, TRIM: 1 << 30, ARENA: 1}


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory.__wrapped__()
    assert not allocator.keep_all_memory()
    allocator.give_back_memory()
