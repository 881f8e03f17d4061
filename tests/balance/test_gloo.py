"""The exchange over gloo, a process per rank: gradients, resume, and ranks that die or stall."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.started import ROOT, told_by


def run(world_size: int, store: Path) -> list[tuple[int, Any, str]]:
    """Exit status, what it printed and standard error, by rank."""
    script = Path(__file__).with_name("gloo_rank.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(store)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=90) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    return [
        (process.returncode, json.loads(out.splitlines()[-1]) if out else None, error)
        for process, (out, error) in zip(ranks, outputs, strict=True)
    ]


def check_training(world_size: int, tmp_path: Path) -> None:
    done = run(world_size, tmp_path / "store")
    assert [status for status, _, _ in done] == [0] * world_size, done
    outs = [out for _, out, _ in done]
    everything = sorted([rank, place] for rank in range(world_size) for place in range(21 + 6 * rank))
    for mode in ("off", "local", "reservoir", "global"):
        by_rank = [out[mode]["ids"] for out in outs]
        assert sorted(one for ids in by_rank for step in ids for one in step) == everything
        assert [out[mode]["resumed"] for out in outs] == [ids[4:] for ids in by_rank]
    unbalanced, balanced = ([out[mode] for out in outs] for mode in ("off", "global"))
    for step in range(len(unbalanced[0]["ids"])):
        before, after = (sorted(one for out in mode for one in out["ids"][step]) for mode in (unbalanced, balanced))
        assert before == after
    torch.testing.assert_close(
        torch.tensor(balanced[0]["gradients"]), torch.tensor(unbalanced[0]["gradients"]), rtol=1e-6, atol=1e-6
    )


def test_two_ranks_train_on_the_same_global_batches_with_the_same_gradients(tmp_path: Path) -> None:
    check_training(2, tmp_path)


@pytest.mark.slow
def test_three_ranks_do_so_too(tmp_path: Path) -> None:
    check_training(3, tmp_path)


STAGES = range(7)  # those of `gloo_faults.py`
ENDED = "has ended" if sys.platform == "linux" else ""  # elsewhere a process's end is not seen by the others


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "kind",
    [
        "dies",
        pytest.param("stalls", marks=pytest.mark.slow),
        pytest.param("is slow", marks=pytest.mark.slow),
        pytest.param("ends", marks=pytest.mark.slow),
        pytest.param("fails", marks=pytest.mark.slow),
    ],
)
def test_a_rank_at_fault_is_named_on_every_rank_within_the_timeout_at_whatever_stage(kind: str) -> None:
    """Rank 1 of three dies, hangs, is slow, ends, or fails at each of the exchange's calls."""
    told = told_by("tests.balance.gloo_faults", kind)
    for stage in STAGES:
        ranks = told[stage]
        if kind == "is slow" and stage != 6:
            assert sorted(int(text.split()[0]) for text, _ in ranks) == [12] * 3, (stage, ranks)
            continue
        for rank in (0, 2):
            text, seconds = ranks[rank]
            assert "RuntimeError: BalancedExchange: rank" in text, (stage, ranks)
            stalls = kind == "stalls" and stage != 6
            assert f"What is known: rank 1 {'did not come' if stalls else ENDED}" in text, (stage, ranks)
            assert seconds < 100  # far below the ten minutes that a rank is waited for which has not ended
        if kind == "stalls" and stage != 6:  # it lives, and is told as well
            assert "rank 1" in ranks[1][0]
