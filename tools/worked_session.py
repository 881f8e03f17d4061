"""Try README.md's three ways in as a newcomer: an empty folder, the installed wheel, and nothing else of this checkout.

    python tools/worked_session.py ENVIRONMENT/bin/python    # after release_check.py --env ENVIRONMENT

Every file is a block of the README as it stands there, but for what the README calls the reader's own: the data, a
dataset and a model of its rows. What was typed and what came is written to docs/worked-session.md. Exits 1 where a step
fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "worked-session.md"
DATA = """\
import numpy as np, pyarrow as pa, pyarrow.parquet as pq, pathlib

rng = np.random.default_rng(0)
pathlib.Path("clicks").mkdir()
for part in range(4):
    price, item = rng.gamma(2.0, 10.0, 20_000), rng.integers(0, 500, 20_000)
    click = (rng.random(20_000) < 1 / (1 + np.exp(3 - price / 10))).astype(np.int8)
    table = pa.table({"price": price, "item": item, "click": click})
    pq.write_table(table, f"clicks/{part}.parquet", row_group_size=2_000)
"""
OWN = """\
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import TensorDataset

dataset = TensorDataset(torch.randn(5_000, 3))


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.last(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


net = Net()
"""
HEAD = """\
# A worked session

What a newcomer typed, with README.md, the installed wheel and an empty folder, and what came back. Made by
`python tools/worked_session.py`, which fails where a step does. Every file is a block of the README as it stands
there, but for `make_clicks.py` and `own.py`, the reader's own data, dataset and model. The machine was shared, so the
rates mean nothing.
"""


def blocks(language: str) -> list[str]:
    """The README's code of that language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def main() -> int:
    """The whole session, in a folder that is gone afterwards."""
    if len(sys.argv) != 2:
        print("usage: python tools/worked_session.py ENVIRONMENT/bin/python", file=sys.stderr)
        return 2
    python = Path(sys.argv[1]).absolute()
    model, callback, loader, *_ = blocks("python")
    files = [
        ("make_clicks.py", DATA, "The reader's data", ["python make_clicks.py", "ls clicks"]),
        ("my_model.py", model, "The model, from the README", []),
        ("way1.py", callback, "A callback and a DataModule", ["python way1.py"]),
        ("own.py", OWN, "The reader's own dataset and model of its rows", []),
        ("way2.py", "from own import dataset, net\n" + loader, "The DataLoader you have", ["python way2.py"]),
        (
            "run.yaml",
            blocks("yaml")[0],
            "The command line",
            ["lightning-intune schema clicks --label click", "lightning-intune fit --config run.yaml"],
        ),
        (
            None,
            "",
            "Mistakes",
            [
                "lightning-intune fit --config run.yaml --data.train nowhere",
                "lightning-intune fit --config run.yaml --data.batch_sise 512",
                "lightning-intune fit --config run.yaml --model my_model.ClickModle",
            ],
        ),
    ]
    page = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        for name, content, title, commands in files:
            page.append(f"## {title}\n")
            if name is not None:
                (Path(folder) / name).write_text(content)
                language = {".py": "text", ".yaml": "yaml"}[Path(name).suffix]  # text: the tests of docs run python
                page.append(f"`{name}`:\n\n```{language}\n{content}```\n")
            is_mistake = title == "Mistakes"
            page.extend(typed(command, python, Path(folder), may_fail=is_mistake) for command in commands)
    PAGE.write_text("\n".join(page))
    print(f"worked session: wrote {PAGE.relative_to(ROOT)}")
    return 0


def typed(command: str, python: Path, folder: Path, *, may_fail: bool) -> str:
    """`command` and what it printed, as Markdown."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = {**kept, "PATH": f"{python.parent}{os.pathsep}{kept['PATH']}", "NO_COLOR": "1", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    said = (done.stdout + done.stderr).replace(str(folder), ".").replace(str(python.parent.parent), "ENV")
    if (done.returncode != 0) != may_fail:
        sys.exit(f"{said}\nworked session: '{command}' ended with {done.returncode}")
    lines = [line.rpartition("\r")[2].rstrip() for line in said.splitlines()]
    ending = f"[exit code {done.returncode}]\n" if may_fail else ""
    return "```text\n$ " + command + "\n" + "\n".join(line for line in lines if line) + f"\n{ending}```\n"


if __name__ == "__main__":
    sys.exit(main())
