"""What every test and doctest runs under: one thread per native pool, Hypothesis profiles, and no leaks."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator

# Before torch or pyarrow is imported: tests count the pipeline's own threads, and two cores are few.
for pool in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

# A shell without job control starts what it puts in the background deaf to Ctrl-C; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a test tells nobody that it ran

import hypothesis
import numpy as np
import psutil
import pytest

# A shared machine stalls for longer than any deadline or speed check allows for.
COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("dev", **COMMON)
hypothesis.settings.register_profile("ci", derandomize=True, print_blob=True, **COMMON)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

GRACE_S = 2.0
"""How long a thread or process that was told to end may take to be gone."""

LASTING_THREADS = {
    "tqdm's monitor, one for the whole process": lambda thread: type(thread).__name__ == "TMonitor",
    "a native thread that once called Python": lambda thread: isinstance(thread, threading._DummyThread),
    "pytest-timeout's own": lambda thread: thread.name.startswith("pytest_timeout"),
}


def lasting_pids() -> set[int | None]:
    """Our fork server and multiprocessing's two helpers, which live as long as this process; not their *children*."""
    from multiprocessing import forkserver, resource_tracker

    forking = sys.modules.get("lightning_intune.flow.lanes.forking")
    ours = forking.FORK_SERVER.pids if forking is not None else set()
    return {*ours, forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}


def threads() -> set[threading.Thread]:
    """Living threads, less those that outlast a test for a reason."""
    return {t for t in threading.enumerate() if not any(spared(t) for spared in LASTING_THREADS.values())}


def processes() -> set[psutil.Process]:
    """Living processes below this one, at any depth (a fork server's workers are its children, not ours)."""
    below = set(psutil.Process().children(recursive=True))
    lasting = lasting_pids()
    return {p for p in below if p.pid not in lasting}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a child process, whether daemon or not; but those that Ray keeps idle."""
    if request.node.get_closest_marker("ray") is not None:
        yield
        return
    threads_before, processes_before = threads(), processes()
    yield
    left = threads() - threads_before, processes() - processes_before
    if not any(left):
        return
    del left
    gc.collect()  # a dropped loader ends its workers when it is collected
    for thread in threads() - threads_before:
        thread.join(GRACE_S)
    psutil.wait_procs(processes() - processes_before, timeout=GRACE_S)
    remain = [*(threads() - threads_before), *(processes() - processes_before)]
    if remain:
        pytest.fail(f"left behind: {', '.join(map(repr, remain))}. Shut down what the test started.", pytrace=False)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace: dict[str, object]) -> None:
    """Docstring examples say `np` as everybody does."""
    doctest_namespace["np"] = np


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine or installation cannot run."""
    for item in items:
        if item.get_closest_marker("ray") and importlib.util.find_spec("ray") is None:
            item.add_marker(pytest.mark.skip(reason="the extra [ray] is not installed"))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def has_gpu() -> bool:
    """Whether torch finds a CUDA device; torch is imported only when a test asks."""
    import torch

    return torch.cuda.is_available()
