"""`InTuneDataModule(balance=...)` under Lightning: on one rank and two, cut and resumed, on other numbers of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_intune import InTuneDataModule
from lightning_intune.balance import Balance
from lightning_intune.cli import main
from lightning_intune.config import Schema
from lightning_intune.dedup.etl.session_layout import file_metadata, fold_sessions, session_bounds
from lightning_intune.errors import ConfigError
from lightning_intune.flow.on_error import skip
from tests.balance.lightning_runs import SCHEMA
from tests.started import told_by

NUM_SESSIONS = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Rows of sessions side by side, the same in the session layout, and how many rows there are."""
    folder = tmp_path_factory.mktemp("sessions")
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, NUM_SESSIONS)
    session = np.repeat(np.arange(NUM_SESSIONS), sizes)
    histories = [rng.integers(0, 50, size).tolist() for size in rng.lognormal(2, 1, NUM_SESSIONS).astype(int) + 1]
    table = pa.table(
        {
            "session": session,
            "row": np.arange(len(session)).astype(np.float32),
            "history": [histories[s] for s in session],
            "item": rng.integers(0, 50, len(session)),
            "click": (rng.random(len(session)) < 0.3).astype(np.int8),
        }
    )
    rows, folded = folder / "rows.parquet", folder / "sessions.parquet"
    pq.write_table(table, rows, row_group_size=40)
    level = ["session", "history"]
    about = file_metadata("sessions", session="session", time="row", session_level=level, partition="none")
    whole = fold_sessions(table, session_bounds(table["session"]), level)
    pq.write_table(whole.replace_schema_metadata(about), folded, row_group_size=16)
    return rows, folded, len(session)


def run(folder: Path, runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ran = told_by("tests.balance.lightning_runs", json.dumps({"folder": str(folder), "runs": runs}))
    told = {one["name"]: one for one in ran}
    for one in runs:
        expected = -9 if "dies_at" in one else 0
        assert set(told[one["name"]]["codes"]) == {expected}
    return told


def rows_of(steps: list[list[Any]], epoch: int) -> list[int]:
    return sorted(row for rank in steps for at, _, rows, _ in rank if at == epoch for row in rows)


def job(data: Path, name: str, balance: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"ranks": 2, "data": str(data), "settings": {"batch_size": 8}, **more, "balance": balance, "name": name}


BY_HISTORY = {"length": "history", "quadratic": 0.1}


@pytest.mark.timeout(300)
def test_two_ranks_train_balanced_as_unbalanced_and_resume_exactly(
    files: tuple[Path, Path, int], tmp_path: Path
) -> None:
    rows, _, num_rows = files
    whole = {"mode": "global", **BY_HISTORY}
    told = run(
        tmp_path,
        [
            job(rows, "off", {"mode": "off"}),
            job(rows, "whole", whole, board=True),
            job(rows, "cut", whole, dies_at=15),
            job(rows, "resumed", whole, resumes="cut"),
        ],
    )
    steps = told["whole"]["steps"]
    assert [rows_of(steps, epoch) for epoch in (0, 1)] == [list(range(num_rows))] * 2
    assert len(steps[0]) == len(steps[1]) == 2 * -(-num_rows // 16)
    done = told["resumed"]["done"]["total"]
    assert done == 12
    assert told["resumed"]["steps"] == [rank[done:] for rank in steps]
    assert told["resumed"]["weights"] == told["whole"]["weights"]
    # Every global step has the same samples, and the scaled losses the same mean: so the same weights in the end.
    assert np.abs(np.subtract(told["whole"]["weights"], told["off"]["weights"])).max() < 1e-6
    check_board(tmp_path / "board" / "whole", len(steps[0]))


def check_board(folder: Path, num_steps: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    tags = {tag for tag in board.Tags()["scalars"] if tag.startswith("intune/bubble/")}
    assert tags == {
        f"intune/bubble/{name}"
        for name in (
            "planned measured waited_rank waited_for_rank waited_s wait_s/rank0 wait_s/rank1".split()  # noqa: SIM905
        )
    }
    for tag in tags:
        events = board.Scalars(tag)
        assert len(events) >= 2
        assert events[-1].step == num_steps  # what was not yet told is told at the end
        assert all(event.value >= 0 for event in events)
    for name in ("planned", "measured"):
        assert all(event.value < 1 for event in board.Scalars(f"intune/bubble/{name}"))
    waited, waited_for = (board.Scalars(f"intune/bubble/{name}_rank") for name in ("waited", "waited_for"))
    assert [one.value + other.value for one, other in zip(waited, waited_for, strict=True)] == [1.0] * len(waited)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("unit", "mode"), [("impression", "local"), ("impression", "reservoir"), ("rows", "global"), ("layout", "global")]
)
def test_units_and_modes_resume_on_the_same_ranks_and_on_others(
    files: tuple[Path, Path, int], tmp_path: Path, unit: str, mode: str
) -> None:
    rows, folded, num_rows = files
    data = folded if unit == "layout" else rows
    balance: dict[str, Any] = {"mode": mode, **BY_HISTORY}
    more: dict[str, Any] = {}
    if unit != "impression":
        balance |= {"unit": "session", "equal_count": False} | ({"session": "session"} if unit == "rows" else {})
        more = {"settings": {"batch_size": 4, "dedup": [["history"]]}}
    told = run(
        tmp_path,
        [
            job(data, "whole", balance, **more),
            job(data, "cut", balance, dies_at=6, **more),
            job(data, "resumed", balance, resumes="cut", **more),
            job(data, "three", balance, resumes="cut", ranks=3, **more),
            job(data, "one", balance, resumes="cut", ranks=1, **more),
            job(data, "cut-again", balance, resumes="cut", ranks=3, dies_at=4, **more),
            job(data, "back", balance, resumes="cut-again", **more),
        ],
    )
    steps = told["whole"]["steps"]
    assert [rows_of(steps, epoch) for epoch in (0, 1)] == [list(range(num_rows))] * 2
    done = told["resumed"]["done"]["total"]
    assert done == 3
    assert told["resumed"]["steps"] == [rank[done:] for rank in steps]
    before = rows_of([rank[:done] for rank in told["cut"]["steps"]], 0)
    for name in ("three", "one"):
        assert sorted(before + rows_of(told[name]["steps"], 0)) == list(range(num_rows))
        assert rows_of(told[name]["steps"], 1) == list(range(num_rows))
    between = told["back"]["done"]["epoch"] - done
    before += rows_of([rank[:between] for rank in told["cut-again"]["steps"]], 0)
    assert sorted(before + rows_of(told["back"]["steps"], 0)) == list(range(num_rows))
    assert rows_of(told["back"]["steps"], 1) == list(range(num_rows))


@pytest.mark.timeout(300)
def test_one_rank_spreads_its_own_and_resumes_exactly(files: tuple[Path, Path, int], tmp_path: Path) -> None:
    rows, folded, num_rows = files
    balance = {"mode": "global", **BY_HISTORY}
    sessions = {"mode": "local", "unit": "session", **BY_HISTORY}
    runs = [
        job(rows, "whole", balance, ranks=1),
        job(rows, "cut", balance, ranks=1, dies_at=17),
        job(rows, "resumed", balance, ranks=1, resumes="cut"),
        job(folded, "layout", sessions, ranks=1, settings={"batch_size": 4, "dedup": [["history"]]}),
    ]
    told = run(tmp_path, runs)
    steps = told["whole"]["steps"]
    done = told["resumed"]["done"]["total"]
    assert done == 15
    assert told["resumed"]["steps"] == [rank[done:] for rank in steps]
    for name in ("whole", "layout"):
        assert [rows_of(told[name]["steps"], epoch) for epoch in (0, 1)] == [list(range(num_rows))] * 2


def data_module(path: Path, balance: Balance, **settings: Any) -> InTuneDataModule:
    return InTuneDataModule(SCHEMA, str(path), balance=balance, **{"batch_size": 8, **settings})


def batches(module: InTuneDataModule) -> list[Any]:
    module.setup("fit")
    out = list(module.train_dataloader())
    module.teardown()
    return out


def num_values(batch: Any) -> int:
    return len(batch.sparse["history"][0])


def test_steps_of_one_rank_hold_as_many_values(files: tuple[Path, Path, int]) -> None:
    rows, _, _ = files
    plain, balanced = (
        [num_values(batch) for batch in batches(data_module(rows, balance))][:16]
        for balance in (Balance(), Balance(mode="local", length="history"))
    )
    spread = [max(part) / min(part) for part in (plain[:8], plain[8:])]
    assert min(spread) > 1.5
    assert max(max(part) / min(part) for part in (balanced[:8], balanced[8:])) < 1.2


def test_a_budget_is_kept_on_one_rank(files: tuple[Path, Path, int]) -> None:
    rows, _, num_rows = files
    out = batches(data_module(rows, Balance(mode="local", length="history", max_cost=100.0)))
    assert sum(map(len, out)) == num_rows
    assert all(num_values(batch) <= 100 or len(batch) == 1 for batch in out)
    padded = Balance(mode="local", length="history", linear=0.0, quadratic=1.0, padded=True, max_cost=4000.0)
    for batch in batches(data_module(rows, padded)):
        longest = int(batch.sparse["history"][1].max())
        assert len(batch) * longest**2 <= 4000 or len(batch) == 1


def test_drop_last_leaves_out_the_short_batch(files: tuple[Path, Path, int]) -> None:
    rows, _, num_rows = files
    module = data_module(rows, Balance(mode="local"), drop_last=True)
    out = batches(module)
    assert [len(batch) for batch in out] == [8] * (num_rows // 8)


def test_len_is_known_where_rows_are_units(files: tuple[Path, Path, int]) -> None:
    rows, folded, num_rows = files
    for module, expected in (
        (data_module(rows, Balance(mode="local")), -(-num_rows // 8)),
        (data_module(folded, Balance(unit="session")), -(-NUM_SESSIONS // 8)),
        (data_module(rows, Balance(mode="local", unit="session", session="session")), None),
        (data_module(rows, Balance(mode="local"), filters=[["row", ">=", 0]]), None),
    ):
        module.setup("fit")
        loader = module.train_dataloader()
        if expected is None:
            with pytest.raises(TypeError):
                len(loader)
        else:
            assert len(loader) == expected == len(list(loader))
        module.teardown()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "all"}, "mode='all' is unknown"),
        ({"unit": "row"}, "unit='row' is unknown"),
        ({"mode": "local", "session": "s"}, "session='s' is for unit='session'"),
        ({"mode": "local", "equal_count": False}, "equal_count=False is for mode='global'"),
        ({"window": 0}, "window=0 has no step"),
        ({"max_cost": 0.0}, r"max_cost=0\.0 admits no sample"),
        ({"max_cost": float("nan")}, "max_cost=nan admits no sample"),
        ({"timeout_s": 0.0}, r"timeout_s=0\.0 waits for nobody"),
        ({"linear": -1.0}, r"linear=-1\.0"),
        ({"linear": 0.0}, r"Both must be 0 or more, one above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Balance(**settings)


def test_what_does_not_fit_the_schema_or_the_files_is_refused(files: tuple[Path, Path, int]) -> None:
    rows, folded, _ = files
    with pytest.raises(ConfigError, match="no column 'histroy' \\(did you mean 'history'"):
        data_module(rows, Balance(mode="local", length="histroy"))
    with pytest.raises(ConfigError, match="no row has a length"):
        InTuneDataModule(Schema(dense=SCHEMA.dense, labels=["click"]), str(rows), balance=Balance(mode="local"))
    with pytest.raises(ConfigError, match="may not skip batches of 'transform'"):
        data_module(rows, Balance(mode="local"), on_error={"transform": skip()})
    with pytest.raises(ConfigError, match="does not say that its rows are sessions"):
        data_module(rows, Balance(mode="local", unit="session")).setup("fit")
    with pytest.raises(ConfigError, match="no column 'visit'"):
        data_module(rows, Balance(mode="local", unit="session", session="visit")).setup("fit")
    with pytest.raises(ConfigError, match="Set unit to session"):
        data_module(folded, Balance(mode="local")).setup("fit")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_setting_is_shown_by_print_config_and_read_from_yaml(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-intune"])
    config = tmp_path / "run.yaml"
    config.write_text("data: {balance: {mode: off, unit: session, length: history, padded: true}}\n")
    model = ["--model", "lightning.pytorch.demos.boring_classes.BoringModel"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *model, "--config", str(config), "--data.balance.window=4", "--print_config"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for line in ("balance:", "unit: session", "length: history", "padded: true", "window: 4", "equal_count: true"):
        assert f" {line}\n" in shown
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--data.balance.max_cost" in text
    assert "The column that tells rows of one session" in text or "the column that tells rows of one session" in text


def test_every_sparse_feature_counts_where_none_is_named(files: tuple[Path, Path, int]) -> None:
    rows, _, _ = files
    values = [len(batch.sparse.values()) for batch in batches(data_module(rows, Balance(mode="local")))][:8]
    assert max(values) / min(values) < 1.2
