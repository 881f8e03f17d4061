"""What is typed wrong is answered by a line or two: the option, the nearest right one, where help is."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_intune import __version__, console
from lightning_intune.cli import InTuneCLI

# Lightning 2.6 calls jsonargparse in ways that jsonargparse 4.53 deprecates; nothing of ours is in those calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODEL = ["--model", "lightning.pytorch.demos.boring_classes.BoringModel"]
SETTINGS = """\
seed_everything: 0
model: lightning.pytorch.demos.boring_classes.BoringModel
data:
  train: clicks
  {size}: 256
  schema:
    dense: [{{name: price, transform: {transform}}}]
    sparse: [{{name: item, {rows}: 1000}}]
    labels: [click]
"""
GOOD = {"size": "batch_size", "transform": "log1p", "rows": "num_embeddings"}


@pytest.fixture(scope="module", autouse=True)
def one_parser() -> Iterator[None]:
    """Lightning takes a second to make the parsers of its four commands: all tests share them."""
    made: dict[str, Any] = {}
    names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")

    def set_up(self: InTuneCLI, *arguments: Any) -> None:
        if not made:
            LightningCLI.setup_parser(self, *arguments)
            made.update({name: getattr(self, name) for name in names})
        for name, value in made.items():
            setattr(self, name, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InTuneCLI, "setup_parser", set_up)
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the settings of a run, and some clicks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-intune"])  # pytest's own would be taken for a second one
    # Each command puts the filter anew, on a logger that outlives the test.
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "filters", [])
    (tmp_path / "run.yaml").write_text(SETTINGS.format(**GOOD))
    pq.write_table(pa.table({"price": [1.0, 2.0], "item": [3, 4], "click": [0, 1]}), tmp_path / "clicks.parquet")
    return tmp_path


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a mistake is answered with, its status being 2."""
    monkeypatch.setattr("sys.argv", ["lightning-intune", *arguments])
    try:
        status = console.main()
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    return captured.err.splitlines()


WRONG = {
    "fit --nonsense 3": "there is no option '--nonsense'.",
    "fit --data.batch_sizee 3": "there is no option '--data.batch_sizee'. Did you mean '--data.batch_size'?",
    "fit --modle x.Y": "there is no option '--modle'. Did you mean '--model'?",
    "fit": "--model is missing.",
    "fit more --model M": "'more' belongs to no option.",
    "fit --config no.yaml": "--config: File does not exist: ",
    "fit --model M --data.batch_size many": "--data.batch_size: 'many' is not a whole number.",
    "fit --model M --trainer.max_epochs one": "--trainer.max_epochs: 'one' is not a whole number.",
    "fit --model M --intune.agent dqnn": "--intune.agent: 'dqnn' is not one of: ",
    "fit --model M --optimizer Adm": "--optimizer: 'Adm' is no class here. ",
    "fit --model M --data.train": "--data.train: expected one argument.",
    "fit --model no_such_module.Model": "--model: no module named 'no_such_module'. ",
    "fit --model Ml": (
        "--model: module 'lightning.pytorch.demos.boring_classes' has no 'BoringModell'. Did you mean 'BoringModel'?"
    ),
    "schema clicks.parquet --lable click": "there is no option '--lable'. Did you mean '--label'?",
    "schema clicks.parquet": "--label is missing.",
    "schema x --label y --num-embeddings 1": "--num-embeddings: '1' is no whole number of 2 or more.",
    "synth --rowz 3": "there is no option '--rowz'. Did you mean '--rows'?",
    "synth out --sequences -1": "--sequences: '-1' is no whole number of 0 or more.",
    "pretrain --turns 0": "--turns: '0' is no whole number of 1 or more.",
    "pretrain --turns 1.5": "--turns: '1.5' is no whole number of 1 or more.",
    "pretrain --seed -1": "--seed: '-1' is no whole number of 0 or more.",
    "pretrain --json --quiet": "--quiet: not allowed with argument --json.",
}


@pytest.mark.parametrize("typed", WRONG)
def test_a_wrong_option_is_named_with_the_nearest_right_one_and_where_help_is(
    typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [re.sub(r"^M(l?)$", MODEL[1] + r"\1", word) for word in typed.split()]
    first, second = said(arguments, capsys, monkeypatch)
    command = f"lightning-intune {arguments[0]}"
    assert first.startswith(f"{command}: {WRONG[typed]}")
    assert second == f"'{command} --help' says what there is."


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"size": "batch_sise"}, "there is no option '--data.batch_sise'. Did you mean '--data.batch_size'?"),
        (
            {"rows": "num_embedings"},
            "--data.schema.sparse: SparseFeature has no setting 'num_embedings'. Did you mean 'num_embeddings'?",
        ),
        (
            {"transform": "log2p"},
            "--data.schema.dense.transform: 'log2p' is not one of: none, log1p. Did you mean 'log1p'?",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_of_a_file_is_named_as_the_option_it_is(
    wrong: dict[str, str],
    line: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "run.yaml").write_text(SETTINGS.format(**(GOOD | wrong)))
    first, _ = said(["fit", "--config", "run.yaml"], capsys, monkeypatch)
    assert first == f"lightning-intune fit: {line}"


def test_settings_that_are_no_yaml_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "run.yaml").write_text("model: [\n")
    first, _ = said(["fit", "--config", "run.yaml"], capsys, monkeypatch)
    assert first.startswith("lightning-intune fit: the settings are no YAML: ")
    assert "line 2" in first


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trainer.accelerator", "tpuu"], "invalid accelerator name: `accelerator='tpuu'`"),
        (["--trainer.max_epochs=-5"], "`max_epochs` must be a non-negative integer or -1"),
        (["--ckpt_path", "gone.ckpt"], "--ckpt_path gone.ckpt: there is no such file."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_a_trainer_refuses_is_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    lines = said(["fit", "--config", "run.yaml", *quiet, *arguments], capsys, monkeypatch)
    assert line in lines[-1]
    assert lines[-1].startswith("lightning-intune: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fti"], "there is no command 'fti'. Did you mean 'fit'?"),
        (["--verion"], "'--verion' comes behind a command. Commands: fit, "),
        (["--config", "run.yaml"], "'--config' comes behind a command. Commands: fit, "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_without_a_command_they_are_listed(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [only] = said(arguments, capsys, monkeypatch)
    assert only.startswith(f"lightning-intune: {line}")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-intune {__version__}\n"


def test_a_folder_that_takes_no_weights_shows_before_the_learning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").touch()
    [only] = said(["pretrain", "--out", "file"], capsys, monkeypatch)
    assert only == "lightning-intune: pretrain: --out file: File exists. Name a folder to write to."


def test_a_schema_as_json_is_what_fit_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["schema", "clicks.parquet", "--label", "click", "--num-embeddings", "10", "--json"]) == 0
    (folder / "data.json").write_text(capsys.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        console.main(["fit", *MODEL, "--config", "data.json", "--data.train", "clicks.parquet", "--print_config"])
    assert ended.value.code == 0
    assert "num_embeddings: 10" in capsys.readouterr().out


def test_a_quiet_schema_does_not_name_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"item": [3], "when": [pa.scalar(0, pa.timestamp("s"))], "click": [1]}), "times.parquet")
    assert console.main(["schema", "times.parquet", "--label", "click", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "item" in captured.out


@pytest.mark.parametrize("form", ["--json", "--quiet"])
def test_pretraining_tells_its_result_alone_where_it_is_asked_to(
    form: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_intune.control import pretrain

    def learnt(settings: pretrain.TrainSettings, *_: object) -> tuple[dict[str, object], list[pretrain.Checkpoint]]:
        made = pretrain.Checkpoint(turn=settings.num_turns, regret_pct=1.0, regret_p95_pct=4.0, error=0.1, seconds=2.0)
        return pretrain.initial_weights(9, pretrain.np.random.default_rng(0)), [made]

    monkeypatch.setattr(pretrain, "pretrain", learnt)
    assert console.main(["pretrain", "--turns", "3", "--out", "w", form]) == 0
    captured = capsys.readouterr()
    [line] = captured.out.splitlines()
    assert captured.err == ""
    assert (folder / "w" / "dqn-0.safetensors").exists()
    if form == "--json":
        assert json.loads(line)["best"]["turn"] == 3
    else:
        assert line == (
            "'w/dqn-0.safetensors' written, its report beside it: regret 1.00 % mean, 4.00 % p95 after 3 turns"
        )
