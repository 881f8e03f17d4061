"""Ray lanes keep the promises of process lanes, on a local cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lightning_intune.errors import ConfigError
from lightning_intune.flow.lanes import Failed, Lane, LaneDiedError, open_pool
from tests.lanes import functions
from tests.lanes.functions import Point


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"stage 'decode'.*lightning-intune\[ray\]"):
        open_pool("ray", functions.same, name="decode")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
class TestOnACluster:
    @pytest.fixture
    def lane(self, request: pytest.FixtureRequest) -> Iterator[Lane]:
        pool = open_pool("ray", request.param, name="stage")
        lane = pool.open()
        yield lane
        lane.close()
        lane.close()
        pool.close()

    @pytest.mark.parametrize("lane", [functions.same], indirect=True, ids=["same"])
    def test_values_come_back_equal_in_order_and_writable(self, lane: Lane) -> None:
        array, tensor = np.arange(200_000), torch.arange(300_000, dtype=torch.bfloat16)
        table = pa.table({"a": np.arange(100_000)}).slice(10, 10)
        items = [1, None, {"a": array}, tensor[::2], table, Point(array, "x")]
        back = lane.run(items)
        assert back[:2] == [1, None]
        assert (back[2]["a"] == array).all()
        back[2]["a"][:] = 0
        assert torch.equal(back[3], tensor[::2])
        assert back[4].equals(table)
        assert (back[5].x == array).all()

    @pytest.mark.parametrize("lane", [functions.raises], indirect=True, ids=["raises"])
    def test_errors_come_back_with_the_traceback_of_the_actor(self, lane: Lane) -> None:
        value_error, stop, two = lane.run(["plain", "stop", "two"])
        assert isinstance(value_error.error, ValueError)
        assert "raise ValueError(item)" in str(value_error.error.__cause__)
        assert isinstance(stop.error, StopIteration)
        assert "NeedsTwoError: 1 and 2" in str(two.error)

    @pytest.mark.parametrize("lane", [functions.returns], indirect=True, ids=["returns"])
    def test_what_cannot_cross_fails_alone(self, lane: Lane) -> None:
        outcomes = lane.run(["first", threading.Lock(), "lock", "unwanted", "last"])
        assert (outcomes[0], outcomes[4]) == ("first", "last")
        assert all(isinstance(outcome, Failed) for outcome in outcomes[1:4])

    @pytest.mark.parametrize("lane", [functions.dies], indirect=True, ids=["dies"])
    @pytest.mark.parametrize("item", ["exit", "kill", "sys.exit"])
    def test_a_death_is_told(self, lane: Lane, item: str) -> None:
        assert lane.run(["fine"]) == ["fine"]
        with pytest.raises(LaneDiedError, match="stage 'stage'"):
            lane.run(["fine", item])
        with pytest.raises(LaneDiedError):
            lane.run(["fine"])

    @pytest.mark.parametrize("lane", [functions.waits], indirect=True, ids=["waits"])
    def test_kill_from_another_thread_ends_a_running_call(self, lane: Lane, tmp_path: Path) -> None:
        from tests.lanes.opened import wait_for

        def kill_when_busy() -> None:
            wait_for(tmp_path / "busy")
            lane.kill()

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        with pytest.raises(LaneDiedError):
            lane.run([str(tmp_path / "busy")])
        killer.join()

    @pytest.mark.parametrize("lane", [functions.burns], indirect=True, ids=["burns"])
    def test_cpu_seconds_are_told(self, lane: Lane) -> None:
        lane.run([0.05])
        assert 0.05 <= lane.cpu_s < 0.5

    def test_a_closure_crosses_and_a_lock_is_refused(self) -> None:
        offset, lock = 5, threading.Lock()
        lane = open_pool("ray", lambda item: item + offset, name="stage").open()
        assert lane.run([1]) == [6]
        lane.close()
        with pytest.raises(ConfigError, match="cannot be pickled for Ray"):
            open_pool("ray", lambda _: lock, name="stage")

    def test_a_full_cluster_is_told_and_not_waited_for_without_end(self) -> None:
        from lightning_intune.flow.lanes.ray import RayLanePool

        pool = RayLanePool(functions.same, name="stage", num_cpus=64, start_timeout_s=2.0)
        with pytest.raises(LaneDiedError, match="no free CPU"):
            pool.open()


def test_importing_the_lane_does_not_import_ray() -> None:
    code = "import sys, lightning_intune.flow.lanes.ray; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
