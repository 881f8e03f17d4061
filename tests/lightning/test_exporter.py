"""Prometheus asks, and gets the stages' meters, while a run lasts."""

from __future__ import annotations

import pickle
import re
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import Schema
from lightning_intune.errors import ConfigError
from lightning_intune.exporter import Exporter
from lightning_intune.meters import FlowStats
from tests.lightning.conftest import Clicks, trainer
from tests.lightning.meters import stage_stats, window

pytest.importorskip("prometheus_client")


class Shown:
    """A loader's meters, by hand."""

    def stats(self) -> FlowStats:
        stages = (stage_stats("read", busy_s=6.5, blocked_s=2, cpu_s=1.25), stage_stats("join", busy_s=1))
        return window(10, num_samples=300, wait_s=4, stages=stages)


def ask(port: int) -> dict[str, float]:
    """Series -> value."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(intune\S*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def test_what_is_asked_for_is_what_the_meters_show() -> None:
    exporter = Exporter("127.0.0.1:0")
    exporter.start(lambda: {"train": Shown()}, rank=3)
    try:
        found = ask(exporter.port)
    finally:
        exporter.stop()
    stage = '{lane="thread",loader="train",rank="3",stage="read"}'
    assert found['intune_samples_total{loader="train",rank="3"}'] == 300
    assert found['intune_trainer_wait_seconds_total{loader="train",rank="3"}'] == 4
    assert found[f"intune_stage_busy_seconds_total{stage}"] == 6.5
    assert found[f"intune_stage_blocked_seconds_total{stage}"] == 2
    assert found[f"intune_stage_cpu_seconds_total{stage}"] == 1.25
    assert found[f"intune_stage_items_total{stage}"] == 10
    assert found[f"intune_stage_workers{stage}"] == 2
    join = stage.replace('"read"', '"join"')
    assert found[f"intune_stage_busy_seconds_total{join}"] == 1


def test_a_run_answers_until_it_ends(clicks: Path, schema: Schema, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tuner = InTuneCallback(metrics_address=f"127.0.0.1:{port}")
    samples: list[float] = []

    class Asking(Clicks):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            samples.append(ask(port)['intune_samples_total{loader="train",rank="0"}'])

    data = InTuneDataModule(schema, str(clicks), batch_size=1000)
    trainer(tmp_path, callbacks=[tuner]).fit(Asking(), data)
    assert samples == [1000, 2000, 3000, 4000, 5000, 6000]
    with pytest.raises(OSError, match="refused"):
        ask(port)
    assert isinstance(pickle.loads(pickle.dumps(tuner)), InTuneCallback)


@pytest.mark.parametrize("address", ["9400", "localhost:", "localhost:http", "localhost:70000", ":9400"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is no host:port. Give one, as in '127\.0\.0\.1:9400'"):
        InTuneCallback(metrics_address=address)


def test_a_port_that_is_taken_is_named() -> None:
    first = Exporter("127.0.0.1:0")
    first.start(dict)
    try:
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{first.port} cannot be listened at .*another port"):
            Exporter(f"127.0.0.1:{first.port}").start(dict)
    finally:
        first.stop()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'lightning-intune\[metrics\]'"):
        InTuneCallback(metrics_address="127.0.0.1:9400")
    InTuneCallback()
