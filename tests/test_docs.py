"""What README.md and docs/ show runs as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools.draw_flows import PICTURE, draw, read

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]

# What README.md says the reader has: a model whose steps take such a batch; a dataset, and a model of its rows.
GIVEN = """\
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import TensorDataset


class Learner(LightningModule):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clicks(Learner):
    def __init__(self):
        super().__init__()
        self.items = torch.nn.EmbeddingBag(1000, 4, mode="sum")
        self.last = torch.nn.Linear(5, 1)

    def training_step(self, batch, batch_idx):
        values, lengths = batch.sparse["item"]
        items = self.items(values.long(), torch.cumsum(lengths.long(), 0) - lengths)
        logits = self.last(torch.cat([batch.dense, items], dim=1))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)


class Net(Learner):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.last(batch[0]).square().mean()


model, net, dataset = Clicks(), Net(), TensorDataset(torch.ones(300, 3))
"""


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(python_blocks(page))
]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """A folder with `clicks/`, 2000 rows over two files."""
    rng = np.random.default_rng(0)
    (tmp_path / "clicks").mkdir()
    for part in range(2):
        price, item, click = rng.gamma(2.0, 10.0, 1000), rng.integers(0, 50, 1000), rng.integers(0, 2, 1000)
        table = pa.table({"price": price, "item": [f"item{i}" for i in item], "click": click})
        pq.write_table(table, tmp_path / "clicks" / f"{part}.parquet", row_group_size=500)
    return tmp_path


def test_the_readme_shows_python() -> None:
    assert len(python_blocks(README)) >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_python_runs_as_written(block: str, clicks: Path) -> None:
    (clicks / "given.py").write_text(GIVEN)
    (clicks / "my_model.py").write_text(python_blocks(README)[0])  # as the README says
    script = clicks / "block.py"  # a file, as a reader would have it: worker processes may import it
    script.write_text("from given import *\n" + block)
    # As if this checkout were installed; ranks that share two cores do not share them well with several threads each.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=clicks, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_settings_train_from_the_command_line(clicks: Path) -> None:
    [settings] = re.findall(r"^```yaml\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    (clicks / "run.yaml").write_text(settings)
    (clicks / "my_model.py").write_text(python_blocks(README)[0])
    command = [sys.executable, "-m", "lightning_intune.console", "fit", "--config", "run.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=clicks, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert "| transform |" in done.stderr + done.stdout


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES[:2]:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE))
        assert named
        assert named <= targets


def test_the_picture_of_the_two_flows_is_what_the_code_says() -> None:
    made = draw(read())
    assert PICTURE.read_text() == made, "run: python tools/draw_flows.py"


def test_the_picture_shows_what_is_there_and_nothing_else() -> None:
    flows = read()
    assert {"flow", "dedup", "balance"} <= set(flows.data)
    assert flows.decisions == ["control"]
    assert {("flow", "meters"), ("control", "meters"), ("flow", "knobs"), ("control", "knobs")} <= flows.imports
    assert not {("flow", "control"), ("control", "flow")} & flows.imports
    assert {"ParquetSource", "ElasticMapper", "EqualSteps"} <= set(flows.nodes)
    assert flows.stages == ["read", "transform", "prefetch"]
    bare = draw(replace(flows, imports=set()))  # code that does not meet has no arrows but those between its stages
    assert bare.count("marker-end") == len(flows.stages) + 1
    assert draw(flows).count("marker-end") == bare.count("marker-end") + 6
    assert "planted" in draw(replace(flows, meters=[*flows.meters, "planted"]))


@pytest.mark.parametrize("package", ["flow", "dedup", "balance", "overlap", "control"])
def test_every_public_name_is_in_the_reference(package: str) -> None:
    page = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    described = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, flags=re.MULTILINE))
    names = set(import_module(f"lightning_intune.{package}").__all__)
    aliases = {"AgentName"}  # the name of a type
    assert names - aliases <= described


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
