"""Tables on two ranks whose exchange is behind the compute, under Lightning: trained, killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lightning.sharded_setups import NUM_ROWS, losses, run, setup, trains_and_resumes, write_sessions

OFTEN = {"every_n_train_steps": 1}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sessions(tmp_path_factory.mktemp("sessions"))


@pytest.mark.timeout(200)
def test_a_killed_run_resumes_behind_the_last_batch_trained_on(sessions: Path, tmp_path: Path) -> None:
    run_of_one_epoch = setup("overlapped_tables", sessions, [("step", 8)], trainer={"max_epochs": 1}, saves=OFTEN)
    result = run(tmp_path, [run_of_one_epoch])
    assert result["differences"] == []
    assert result["trained"] == [[list(range(NUM_ROWS))]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wherever_it_is_cut_a_run_resumes_exactly(sessions: Path, tmp_path: Path) -> None:
    """Within the epoch, at its end, where the last step trains two batches, in a save, in a validation."""
    result = run(
        tmp_path,
        [
            setup("overlapped_tables", sessions, [("step", 12), ("step", 13), ("saved", 5)], saves=OFTEN),
            setup(
                "overlapped_tables", sessions, [("validation", 15)], trainer={"max_epochs": 2, "val_check_interval": 4}
            ),
            setup(
                "overlapped_tables", sessions, [("step", 14)], {"filters": [["row", ">=", 0]]}, saves=OFTEN
            ),  # no len
            setup(
                "overlapped_tables",
                sessions,
                [("step", 16)],
                trainer={"max_epochs": 3, "limit_train_batches": 7},
                saves=OFTEN,
            ),
            setup("overlapped_tables", sessions, [("step", 13)], saves={"every_n_epochs": 1}),
            setup("overlapped_tables", sessions, [("step", 5)], {"dedup": None}, ranks=1, saves=OFTEN),
        ],
    )
    assert result["differences"] == []
    everything = [list(range(NUM_ROWS))] * 2
    assert [result["trained"][at] for at in (0, 1, 2, 4, 5)] == [everything] * 5
    assert [len(rows) for rows in result["trained"][3]] == [2 * 7 * 64] * 3


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_overlapped_waiting_deduplicated_and_expanded_runs_train_the_same(sessions: Path, tmp_path: Path) -> None:
    settings = [{}, {}, {"dedup": None}]
    ways = [
        setup("overlapped_tables", sessions, [], {"shuffle": False, **changes}, options={"overlap": at != 1})
        for at, changes in enumerate(settings)
    ]
    run(tmp_path, ways)
    ours, waiting, expanded = (losses(tmp_path, at) for at in range(3))
    assert ours == waiting
    assert [len(rank) for rank in ours] == [24, 24]
    # Sums in another order: last bits differ from step 12 on, and the row's number as a feature makes losses of 20.
    assert ours == [pytest.approx(rank, rel=1e-4) for rank in expanded]
    assert len({round(loss, 3) for loss in ours[0]}) > 12  # it learns


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_readmes_commands_train_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    trains_and_resumes(tmp_path, "overlapped_tables")
