"""Over gloo, a process per rank: training beside DDP, checkpoints, and ranks at fault."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.overlap.gloo_ranks import STAGES
from tests.started import told_by


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """One start of Python for all of the quick ones."""
    return told_by("tests.overlap.gloo_ranks", "train", "uneven:", "bad id:", "dies:marks", "dies:urgent", "dies:rest")


@pytest.mark.timeout(200)
def test_two_ranks_train_as_if_they_waited_and_resume_from_a_checkpoint_of_both(told: dict[str, Any]) -> None:
    for rank in ("train/0", "train/1"):
        out = told[rank]
        assert out["ours"] == out["waiting"]
        losses, state = out["ours"]
        assert out["resumed"] == [losses[5:], state]
    assert told["train/0"]["keys"] == [
        "bags.embedding_bags.items.weight",
        "bags.embedding_bags.tags.weight",
        "bags.embedding_bags.users.weight",
        *("dense.first.bias", "dense.first.weight", "dense.last.bias", "dense.last.weight"),
        "later.embedding_bags.places.weight",
    ]
    # 41 rows in blocks of 21: the second rank has one less
    assert [len(told[f"train/{rank}"]["ours"][1]["bags.items.weight"]) for rank in range(2)] == [21, 20]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_checkpoint_goes_on_with_other_ranks_and_tables_placed_otherwise(
    told: dict[str, Any], world_size: int
) -> None:
    expected = [told[f"train/{rank}"]["ours"] for rank in range(2)]
    found = [told[f"on {world_size}/{rank}"] for rank in range(world_size)]
    wanted = double([losses[5:] for losses, _ in expected]).sum(dim=0)
    torch.testing.assert_close(double([losses for losses, _ in found]).sum(dim=0), wanted, rtol=0, atol=1e-6)
    for key in expected[0][1]:
        whole, wanted = (whole_of([state[key] for _, state in ranks], key) for ranks in (found, expected))
        torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-6)
    # It was cut, and is whole on the first rank without `tags`, which holds less.
    assert [len(state["bags.items.weight"]) for _, state in found] == {1: [41], 3: [0, 41, 0]}[world_size]


def whole_of(parts: list[list[Any]], key: str) -> torch.Tensor:
    """Of all ranks' parts; what is dense each rank has whole."""
    return double(parts[0] if key.startswith("dense") else [row for part in parts for row in part])


def double(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.timeout(200)
def test_a_whole_tables_full_tensor_is_its_owners_alone(told: dict[str, Any]) -> None:
    shapes = {"items": [[41, 4], [41, 4]], "users": [[0], [30, 4]], "tags": [[3, 2], [0]]}
    for name, by_rank in shapes.items():
        key = f"embedding_bags.{name}.weight"
        assert [told[f"train/{rank}"]["full"][key] for rank in range(2)] == by_rank


@pytest.mark.timeout(200)
def test_a_state_placed_otherwise_is_refused_without_torchs_checkpoint(told: dict[str, Any]) -> None:
    for rank in range(2):
        assert "lies otherwise on the ranks. Load it with torch.distributed" in told[f"train/{rank}"]["refused"]


def check_named(told: dict[str, Any], case: str) -> None:
    for rank in (0, 2):
        text, seconds = told[f"{case}/{rank}"]
        assert text.startswith("RuntimeError: overlap: rank"), (case, text)
        assert re.search("What is known: rank 1 (did not come|has ended)", text), text
        assert seconds < 60  # of which 6 are the timeout, and the rest a busy machine's


@pytest.mark.timeout(200)
@pytest.mark.parametrize("stage", ["marks", "urgent", "rest"])
def test_a_rank_that_dies_is_named_on_every_other(told: dict[str, Any], stage: str) -> None:
    assert told[f"dies:{stage}/1"] is None
    check_named(told, f"dies:{stage}")


@pytest.mark.timeout(200)
def test_a_rank_without_more_batches_than_others_ends_all(told: dict[str, Any]) -> None:
    for rank in range(3):
        assert "RuntimeError: overlap: rank 1 has no more batches, and others have" in told[f"uneven:/{rank}"][0]


@pytest.mark.timeout(200)
def test_a_rank_whose_batch_fails_says_why_and_the_others_who(told: dict[str, Any]) -> None:
    assert "IndexError: table 'tags': id 1000000 is outside of its rows 0 to 2" in told["bad id:/1"][0]
    for rank in (0, 2):
        assert "RuntimeError: overlap: rank 1 failed before its batch" in told[f"bad id:/{rank}"][0]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["dies", "stalls", "ends", "fails", "is slow"])
def test_so_it_is_for_every_fault_at_every_stage(kind: str) -> None:
    told = told_by("tests.overlap.gloo_ranks", *(f"{kind}:{stage}" for stage in STAGES))
    for stage in STAGES:
        if kind == "is slow":
            assert [told[f"is slow:{stage}/{rank}"][0] for rank in range(3)] == ["4 steps"] * 3
        else:
            check_named(told, f"{kind}:{stage}")
        if kind == "stalls":  # it lives, and is told as well
            assert "rank 1" in told[f"stalls:{stage}/1"][0]
