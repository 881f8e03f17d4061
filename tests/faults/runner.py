"""Runs one trial of a scenario: bounded in time, with a census before and after."""

from __future__ import annotations

import functools
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource
from tests.faults import functions
from tests.faults.census import Census
from tests.faults.ledger import HungError, Outcome, Trial


@final
@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens to a pipeline, and what must come of it."""

    name: str
    promise: str
    run: Callable[[Trial], None]
    timeout_s: float = 300.0
    is_heavy: bool = False
    """Takes seconds: `make test` leaves it to `make slow` and the soak."""


def run_trial(scenario: Scenario, seed: int, *, timeout_s: float | None = None, grace_s: float = 3.0) -> Outcome:
    """One trial, in this process's main thread. Whatever it raises is a promise broken."""
    _warm_up()
    limit_s = scenario.timeout_s if timeout_s is None else timeout_s
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        trial, before = Trial(seed, Path(folder)), Census.take()
        try:
            with _time_limit(limit_s), warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # a thread that hangs is told of by one
                scenario.run(trial)
        except HungError:
            trial.broken.append(f"hung: not over after {limit_s:g} s, at {_where()}")
        except Exception as error:  # noqa: BLE001 - it is what the trial shows
            trial.broken.append(f"unexpected {type(error).__name__}: {str(error)[:300]}")
        return trial.outcome(scenario.name, before.leaks(grace_s))


@functools.cache
def _warm_up() -> None:
    """The fork server, and what imports open, live as long as this process: they begin before the first census."""
    with ElasticLoader(ElasticMapper(IterableSource([1]), functions.same, 1, method="process")) as loader:
        list(loader)


def _where() -> str:
    error, frames = sys.exc_info()[1], list[Any]()
    at = error.__traceback__ if error is not None else None
    while at is not None:
        frames.append(f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}")
        at = at.tb_next
    return " > ".join(frames[-4:-1])


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    assert threading.current_thread() is threading.main_thread(), "alarms go to the main thread"

    def ring(*_: Any) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, ring)
    timer_before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer_before)  # pytest-timeout's own
        signal.signal(signal.SIGALRM, before)
