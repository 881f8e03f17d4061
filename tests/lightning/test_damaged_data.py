"""Training over data of which a part cannot be read, as the DataModule's `on_error` says."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lightning_intune import InTuneDataModule
from lightning_intune.cli import main
from lightning_intune.config import Schema
from lightning_intune.errors import ConfigError, StageError
from lightning_intune.flow import skip
from tests.lightning.conftest import NUM_ROWS, Clicks, trainer


@pytest.fixture
def damaged(clicks: Path, tmp_path: Path) -> Path:
    """The same files; of the first, row group 2 (rows 1000 to 1499) holds noise."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in clicks.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "part-0.parquet"
    chunk = pq.read_metadata(path).row_group(2).column(1)
    data = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    return folder


def test_a_damaged_row_group_ends_the_fit_and_is_named(damaged: Path, schema: Schema, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stage 'read': item \d+ failed.*row group 2 of '.*part-0.parquet'"):
        trainer(tmp_path).fit(Clicks(), InTuneDataModule(schema, str(damaged), batch_size=250))


def test_a_damaged_row_group_may_be_left_out_of_every_epoch_and_is_listed(
    damaged: Path, schema: Schema, tmp_path: Path
) -> None:
    policy = skip(max_share=0.1, min_items=12, quarantine=tmp_path / "bad.jsonl")  # of 12 row groups one
    data = InTuneDataModule(schema, str(damaged), batch_size=250, on_error={"read": policy})
    model = Clicks()
    trainer(tmp_path, max_epochs=2).fit(model, data)
    left = [row for row in range(NUM_ROWS) if not 1000 <= row < 1500]
    assert sorted(row for batch in model.rows for row in batch) == sorted([*left, *left])
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["read", "read"]
    assert all("part-0.parquet" in line["text"] for line in lines)


def test_a_policy_for_a_stage_that_is_none_is_refused(schema: Schema) -> None:
    with pytest.raises(
        ConfigError, match=r"on_error names the stage 'reed'; those with a function are read, transform"
    ):
        InTuneDataModule(schema, "x", on_error={"reed": skip()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as in test_cli.py
def test_yaml_says_it_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-intune"])
    config = tmp_path / "run.yaml"
    config.write_text(
        "seed_everything: 0\n"
        "model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}\n"
        "data:\n"
        "  train: nowhere\n"
        "  schema: {dense: [{name: x}], labels: [y]}\n"
        "  on_error: {read: {retries: 3, backoff_s: 0.5, skip: true, quarantine: null}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--print_config"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "retries: 3" in shown
    assert "max_share: 0.01" in shown
    config.write_text(config.read_text().replace("retries: 3", "retries: -3"))
    assert main(["fit", "--config", str(config)]) == 2
    assert "lightning-intune: on_error: retries=-3 is no number of tries" in capsys.readouterr().err
