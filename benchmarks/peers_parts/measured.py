"""A run in a process of its own: what it found, and the peak memory of all its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, final

import psutil

ROOT = Path(__file__).parent.parent.parent


def measured(module: str, job: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """(what `python -m module JOB` printed last, "") or (None, why not).

    The child's whole session is ended, whatever happened.
    """
    command = [sys.executable, "-m", module, json.dumps(job)]
    # Files, not pipes: worker processes that a peer leaves behind would hold a pipe open for ever.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        peak = _PeakPss(child.pid)
        try:
            with raised_by_sigterm():
                child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None, f"did not finish: no figures after {timeout_s:.0f} s"
        finally:
            peak_mb = peak.stop()
            end_session(child.pid)
            child.wait()
        lines = [_lines(file) for file in (out, err)]
    if child.returncode != 0 or not lines[0]:
        return None, (lines[1] or [f"exit {child.returncode}"])[-1]
    return json.loads(lines[0][-1]) | {"peak_pss_mb": peak_mb}, ""


@contextmanager
def raised_by_sigterm() -> Generator[None]:
    """SIGTERM raises SystemExit in here, so that whoever waits ends what it has started. Main thread only."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def end_session(pid: int) -> None:
    """End every process of the session that `pid` leads, and its descendants: Ray's are sessions of their own."""
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == pid:
                process.kill()


@final
class _PeakPss:
    """Watches a process tree's proportional set size from outside, twice a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak_mb, self._done = pid, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            total = 0
            with suppress(psutil.Error):
                me = psutil.Process(self._pid)
                for process in (me, *me.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self._peak_mb = max(self._peak_mb, total / 2**20)

    def stop(self) -> float:
        """End the watch; the peak in MiB."""
        self._done.set()
        self._thread.join()
        return self._peak_mb
