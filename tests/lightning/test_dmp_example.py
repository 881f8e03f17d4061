"""TorchRec's DistributedModelParallel and TrainPipelineSparseDist on two ranks, killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lightning.sharded_setups import NUM_ROWS, losses, run, setup, trains_and_resumes, write_sessions

pytest.importorskip("torchrec")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sessions(tmp_path_factory.mktemp("sessions"))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_run_resumes_behind_the_last_batch_that_the_pipeline_has_trained_on(
    sessions: Path, tmp_path: Path
) -> None:
    """Cut within the epoch, at its end, where the last step trains three batches, in a save, in a validation."""
    often = {"every_n_train_steps": 1}
    result = run(
        tmp_path,
        [
            setup("torchrec_dmp", sessions, [("step", 8), ("step", 12), ("step", 13), ("saved", 5)], saves=often),
            setup("torchrec_dmp", sessions, [("validation", 15)], trainer={"max_epochs": 2, "val_check_interval": 4}),
            setup(
                "torchrec_dmp", sessions, [("step", 14)], {"filters": [["row", ">=", 0]]}, saves=often
            ),  # without len
            setup(
                "torchrec_dmp",
                sessions,
                [("step", 16)],
                trainer={"max_epochs": 3, "limit_train_batches": 7},
                saves=often,
            ),
            setup("torchrec_dmp", sessions, [("step", 13)], saves={"every_n_epochs": 1}),
        ],
    )
    assert result["differences"] == []
    everything = [list(range(NUM_ROWS))] * 2
    assert [result["trained"][at] for at in (0, 1, 2, 4)] == [everything] * 4
    assert [len(rows) for rows in result["trained"][3]] == [2 * 7 * 64] * 3


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_deduplicated_input_trains_as_expanded_input_does(sessions: Path, tmp_path: Path) -> None:
    run(
        tmp_path,
        [setup("torchrec_dmp", sessions, [], {"shuffle": False, "dedup": groups}) for groups in ([["history"]], None)],
    )
    once, expanded = losses(tmp_path, 0), losses(tmp_path, 1)
    assert [len(rank) for rank in once] == [24, 24]
    assert once == [pytest.approx(rank, abs=1e-5) for rank in expanded]
    assert len({round(loss, 3) for loss in once[0]}) > 12  # it learns


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_readmes_commands_train_and_resume(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    trains_and_resumes(tmp_path, "torchrec_dmp")
