"""The console commands: help, one line or one JSON object where asked, mistakes in one line, and no Lightning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from lightning_intune.console import main
from lightning_intune.dedup.etl import commands
from lightning_intune.dedup.etl.cluster import VerificationError
from tests.etl.helpers import ROOT

pytest.importorskip("duckdb")


@pytest.fixture
def data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "in.parquet"
    assert main(["synth", str(path), "--rows=3000", "--order=shuffled", "--days=3", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("3,000 rows written to ")
    return path


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    names = ["fit", "validate", "test", "predict", "analyze", "cluster", "synth", "pretrain"]
    assert all(f"\n  {name} " in out for name in names)


@pytest.mark.parametrize("name", ["analyze", "cluster", "synth"])
def test_a_command_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: lightning-intune {name}")
    assert "None)" not in out


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clustr"]) == 2
    assert capsys.readouterr().err == "lightning-intune: there is no command 'clustr'. Did you mean 'cluster'?\n"


def test_what_is_not_ours_goes_to_lightning_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setitem(sys.modules, "lightning_intune.cli", SimpleNamespace(main=lambda args: given.append(args) or 7))
    monkeypatch.delattr("lightning_intune.cli", raising=False)
    assert main(["fit", "--trainer.max_epochs=1"]) == 7
    assert main(["--config=a.yaml", "fit"]) == 7
    assert given == [["fit", "--trainer.max_epochs=1"], ["--config=a.yaml", "fit"]]


def test_cluster_under_json_prints_one_object_and_nothing_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cluster", str(data), str(tmp_path / "out"), "--session=session", "--time=ts", "--memory-limit=512M"]
    assert main([*arguments, "--layout=sessions", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["num_rows"], report["layout"], err) == (3000, "sessions", "")
    assert pq.read_table(tmp_path / "out").num_rows == report["num_sessions"]


def test_cluster_shows_its_steps_on_stderr(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(data), str(tmp_path / "out"), "--session=session", "--time=ts"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3,000 rows of ")
    assert "verified" in out
    assert "100%" in err


def test_analyze_prints_a_table_json_and_a_picture(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["analyze", str(data), "--session=session", "--time=ts", "--memory-limit=512M"]
    assert main([*arguments, f"--png={tmp_path / 'a.png'}"]) == 0
    table = capsys.readouterr().out
    assert "history0" in table
    assert "group 1:" in table
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 3000
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_mistakes_end_in_one_line_and_code_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        ["cluster", str(data), str(tmp_path / "out"), "--session=sesion", "--time=ts", "--quiet"],
        [
            "cluster",
            str(data),
            str(tmp_path / "out"),
            "--session=session",
            "--time=ts",
            "--memory-limit=lots",
            "--quiet",
        ],
        ["cluster", str(tmp_path / "nowhere"), str(tmp_path / "out"), "--session=session", "--time=ts", "--quiet"],
        ["analyze", str(data), "--session=user", "--quiet"],
        ["synth", str(data), "--quiet"],
    ]
    for arguments in cases:
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("lightning-intune: ")


def test_a_full_disk_and_a_failed_check_end_in_one_line_and_code_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".x.parquet.part").symlink_to("/dev/full")
    assert main(["synth", str(tmp_path / "x.parquet"), "--quiet"]) == 1
    assert "no space is left on the disk" in capsys.readouterr().err

    def fail(*_: object) -> None:
        raise VerificationError("cluster: rows are missing")

    monkeypatch.setattr("lightning_intune.dedup.etl.cluster.cluster", fail)
    assert main(["cluster", str(data), str(tmp_path / "out"), "--session=session", "--time=ts", "--quiet"]) == 1
    assert capsys.readouterr().err == "lightning-intune: cluster: rows are missing\n"


def test_our_commands_do_not_import_lightning_or_torch() -> None:
    code = (
        "import sys; from lightning_intune.console import main\n"
        "try: main(['cluster', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'pyarrow.dataset' not in sys.modules\n"
        "import lightning_intune.dedup.etl.cluster, lightning_intune.dedup.etl.synth\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False, cwd=ROOT).returncode == 0
    )


def test_the_default_memory_limit_is_one_a_machine_has() -> None:
    assert 512 * 2**20 <= commands._limit(None) <= 4 * 2**30
