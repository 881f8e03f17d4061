"""The console command: Lightning's subcommands with the tuner in, ours beside them, mistakes in one line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lightning_intune import console
from lightning_intune.cli import main
from lightning_intune.errors import ConfigError
from lightning_intune.flow.infer import infer_schema

# Lightning 2.6 calls jsonargparse in ways that jsonargparse 4.53 deprecates; nothing of ours is in those calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-intune"])  # pytest's own would be taken for a second one


def test_a_users_mistake_ends_with_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "seed_everything: 0\n"
        "model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\n"
        "data:\n"
        "  train: nowhere\n"
        "  batch_size: 0\n"
        "  schema: {dense: [{name: x}], labels: [y]}\n"
    )
    assert main(["fit", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert (
        error.splitlines()[-1]
        == "lightning-intune: InTuneDataModule: batch_size=0 makes no batch. Set it to 1 or more."
    )
    assert "Traceback" not in error


def test_the_tuners_settings_are_lightnings_options(capsys: pytest.CaptureFixture[str]) -> None:
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--model", model, "--intune.agent=hill", "--print_config"])
    assert ended.value.code == 0
    assert "agent: hill" in capsys.readouterr().out


def test_pretrain_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--help"])
    assert ended.value.code == 0
    assert "Remake the tuner's weights" in capsys.readouterr().out


def test_an_imported_modules_classes_go_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--import=lightning.pytorch.demos.boring_classes", "--model", "BoringModel", "--print_config"])
    assert ended.value.code == 0
    assert "class_path: lightning.pytorch.demos.BoringModel" in capsys.readouterr().out
    assert main(["fit", "--import", "no_such_module"]) == 2
    assert "--import no_such_module: No module named 'no_such_module'" in capsys.readouterr().err


def test_the_command_line_keeps_advertisements_to_itself_and_warnings_it_cannot_help() -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    main(["fit", "--import", "no_such_module"])

    def passes(text: str) -> bool:
        return bool(logger.filter(logging.LogRecord(logger.name, logging.INFO, "", 0, text, None, None)))

    assert not passes("Tip: ... try installing [litlogger](...)")
    assert not passes("Tip: ... try installing [litmodels](...)")
    assert passes("`Trainer.fit` stopped: `max_epochs=2` reached.")


def test_a_schema_is_printed_that_fit_can_take(clicks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["schema", str(clicks), "--label", "click", "--num-embeddings", "64"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"# 6,000 rows in {clicks}"
    assert "{name: item, num_embeddings: 64}  # string" in text
    assert yaml.safe_load(text)["data"]["schema"] == {
        "dense": [{"name": "row"}],
        "sparse": [{"name": "item", "num_embeddings": 64}],
        "labels": ["click"],
    }


def test_a_guess_leaves_out_what_no_feature_takes_and_quotes_odd_names() -> None:
    table = pa.schema(
        {"at": pa.timestamp("us"), "ok": pa.bool_(), "ids": pa.list_(pa.int64()), "y": pa.int8(), "w": pa.float32()}
    )
    schema, left = infer_schema(table, labels=["y"], weight="w")
    assert [feature.name for feature in schema.dense] == ["ok"]
    assert [feature.name for feature in schema.sparse] == ["ids"]
    assert (schema.weight, left) == ("w", ["at"])
    with pytest.raises(ConfigError, match="no column 'click'"):
        infer_schema(table, labels=["click"])


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("", ["fit", "cluster", "doctor"], ["--config"]),
        ("cl", ["cluster"], ["fit"]),
        ("cluster --la", ["--layout"], ["--config"]),
        pytest.param("fit --intune.agent ", ["dqn", "hill"], ["fit"], marks=pytest.mark.slow),  # seconds of imports
        pytest.param("fit --data.batch", ["--data.batch_size"], ["--intune.agent"], marks=pytest.mark.slow),
    ],
)
def test_the_tab_key_completes_commands_options_and_values(
    line: str, some: list[str], none: list[str], tmp_path: Path
) -> None:
    """As the function that `register-python-argcomplete` gives the shell asks."""
    if line.startswith("cluster"):
        pytest.importorskip("duckdb")
    whole, answer = f"lightning-intune {line}", tmp_path / "answer"
    asks = {"COMP_LINE": whole, "COMP_POINT": str(len(whole)), "COMP_TYPE": "9", "_ARGCOMPLETE": "1"}
    files = {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    command = [sys.executable, "-m", "lightning_intune.console"]
    ended = subprocess.run(command, env={**os.environ, **asks, **files}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = [word.strip() for word in answer.read_text().split("\n")]
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_every_setting_is_printed_with_its_meaning(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data:\n  train: {clicks}\n  schema:\n    dense: [{{name: row}}]\n"
        "    sparse: [{name: item, num_embeddings: 8}]\n    labels: [click]\n"
    )
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--model", model, "--print_config=comments"])
    assert ended.value.code == 0
    settings = documented(capsys.readouterr().out, ("data", "intune"))
    assert len(settings) > 40
    assert [name for name, comment in settings if len(comment) < 12] == []


def documented(text: str, sections: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each setting within `sections`, and the comment in front of it, less what it says about type and default."""
    found: list[tuple[str, str]] = []
    section, comment = "", ""
    for line in text.splitlines():
        words = line.strip().removeprefix("- ")
        if line[:1].isalpha():
            section, comment = line.split(":")[0], ""
        elif words.startswith("#"):
            comment += words.removeprefix("#").split("(type:")[0].split("(required")[0].strip()
        elif section in sections and ":" in words:
            found.append((words.split(":")[0], comment))
            comment = ""
    return found
