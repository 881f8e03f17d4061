"""What tests of several folders share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Ray on this machine, with four CPUs; for tests marked `ray`, which leave its idle workers to its end."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its own future
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=150_000_000, log_to_driver=False)
        yield ray
        ray.shutdown()
