"""TensorBoard's pages as a user sees them, in headless Chromium.

`SCREENSHOTS=docs/images python -m pytest -m slow tests/lightning/test_board.py` renews the pictures in docs/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_intune import InTuneCallback, InTuneDataModule
from lightning_intune.config import DenseFeature, Schema, SparseFeature
from lightning_intune.report import layout
from tests.lightning.chromium import Page, executable
from tests.lightning.conftest import Validated, trainer

CHROMIUM = executable()
STAGES = ("read", "transform", "prefetch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def logs(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with validation has logged."""
    folder = tmp_path_factory.mktemp("board")
    schema = Schema(
        dense=[DenseFeature(name="row")], sparse=[SparseFeature(name="item", num_embeddings=64)], labels=["click"]
    )
    data = InTuneDataModule(schema, str(clicks), val=str(clicks), batch_size=50)
    options: Any = {"max_epochs": 8, "log_every_n_steps": 50, "logger": TensorBoardLogger(folder, name="clicks")}
    trainer(folder, callbacks=[InTuneCallback(turn_interval_s=0.05)], **options).fit(Validated(), data)
    return folder


@pytest.fixture
def tensorboard(logs: Path) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", ".", "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--load_fast=false"], cwd=logs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    try:
        address = next(found.group() for line in server.stdout if (found := re.search(r"http://[^/ ]+:\d+/", line)))
        yield address
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    assert CHROMIUM is not None
    with Page(CHROMIUM, tmp_path / "profile", width=1180, height=1480) as page:
        yield page


def save(page: Page, name: str, tmp_path: Path, *, height: int) -> None:
    page.resize(1180, height)
    path = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"tensorboard-{name}.png"
    page.save(path)
    assert path.stat().st_size > 20_000  # more than an empty page


def test_the_page_of_charts_shows_every_chart_with_its_lines(tensorboard: str, page: Page, tmp_path: Path) -> None:
    wanted = {name: list(charts) for part in ("", "val") for name, charts in layout(STAGES, part).items()}
    num_charts = sum(map(len, wanted.values()))
    card = "tf-custom-scalar-multi-line-chart-card"
    page.go(f"{tensorboard}?darkMode=false#custom_scalars")
    page.wait_for(f"deep('{card}').length === {num_charts}")
    # Each tag of a chart has found data, and is drawn: TensorBoard adds a path per line to those of the axes.
    tags = [
        len(lines)
        for part in ("", "val")
        for charts in map(dict.values, layout(STAGES, part).values())
        for _, lines in charts
    ]
    page.wait_for(f"deep('{card}').every((card, at) => shown(card).includes(`Matches (${{{tags}[at]}})`))")
    page.wait_for("deep('vz-line-chart2').every((chart, at) => deep('path', chart.shadowRoot || chart).length > 5)")
    titles = [title.strip() for title in page.texts("tf-card-heading")]
    assert titles == [title for charts in wanted.values() for title in charts]
    save(page, "charts", tmp_path, height=1480)


def test_the_summary_tells_what_limits_and_what_to_do(tensorboard: str, page: Page, tmp_path: Path) -> None:
    page.go(f"{tensorboard}?darkMode=false#text")
    page.wait_for("deep('tf-text-loader').some(text => /Limits: .*the trainer waited/s.test(shown(text)))")
    [text] = [text for text in page.texts("tf-text-loader") if "Limits:" in text][:1]
    assert "transform" in text
    save(page, "summary", tmp_path, height=820)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="the figure needs the extra [plots]")
def test_the_stages_are_a_figure(tensorboard: str, page: Page, tmp_path: Path) -> None:
    page.go(f"{tensorboard}?darkMode=false#images")
    page.wait_for("deep('img').some(image => image.naturalWidth >= 300)")
    save(page, "stages", tmp_path, height=620)


def test_settings_stand_beside_what_came_of_them(tensorboard: str, page: Page, tmp_path: Path) -> None:
    page.go(f"{tensorboard}?darkMode=false#hparams")
    page.wait_for("shown(document.body).includes('intune/final/samples_per_s')")
    save(page, "hparams", tmp_path, height=820)
