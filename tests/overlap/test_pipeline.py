"""Steps whose exchange is behind the compute train exactly what steps that wait for it train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.overlap.placement import placed
from lightning_intune.overlap.stack import Stack
from tests.overlap.ranks import on_ranks
from tests.overlap.training import (
    LATER,
    MIXED,
    OPTIMIZERS,
    ROW_WISE,
    STATE_KEYS,
    TABLES,
    Sharding,
    alone,
    part,
    placements,
    samples,
    train,
)


def check(
    world_size: int,
    name: str,
    num_steps: int,
    overlap: float,
    dtype: torch.dtype,
    *,
    seed: int,
    sharding: Sharding,
    max_lag_s: float = 0,
) -> None:
    """Overlapped, waiting, and alone."""
    batches = [samples(rank, num_steps, overlap=overlap, dtype=dtype, seed=seed) for rank in range(world_size)]

    def run(is_overlapped: bool) -> list[Any]:
        ended = on_ranks(
            world_size,
            lambda rank: train(
                rank, batches[rank.rank], OPTIMIZERS[name], overlap=is_overlapped, dtype=dtype, sharding=sharding
            ),
            max_lag_s=max_lag_s,
            seed=seed,
        )
        for one in ended:
            if isinstance(one, Exception):
                raise one
        return ended

    ours, waiting = run(True), run(False)
    for (losses, state, order), (their_losses, their_state, _) in zip(ours, waiting, strict=True):
        assert order == (["bags", "later"] if num_steps else [])
        assert losses == their_losses
        assert state.keys() == their_state.keys()
        for key, values in state.items():
            assert torch.equal(values, their_state[key]), key
    expected_losses, expected = alone(batches, name, dtype)
    within = {"rtol": 0, "atol": 1e-6 if dtype == torch.float64 else 1e-4}
    torch.testing.assert_close(
        torch.tensor([one[0] for one in ours]), torch.tensor(expected_losses), check_dtype=False, **within
    )
    for group, tables in (("bags", TABLES), ("later", LATER)):
        for table in placed(tables, world_size, part(sharding, tables)):
            owned = [Stack([table], world_size).owned(0, rank)[0] for rank in range(world_size)]
            for key in ("weight", *STATE_KEYS[name]):
                for rank, ids in enumerate(owned):
                    values = ours[rank][1][f"{group}.{table.name}.{key}"]
                    torch.testing.assert_close(values, expected[f"{table.name}.{key}"][ids], **within)


@settings(max_examples=16)
@given(
    world_size=st.integers(1, 4),
    name=st.sampled_from(list(OPTIMIZERS)),
    num_steps=st.integers(0, 12),
    overlap=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_parameters_state_and_losses_are_those_of_steps_that_wait_and_of_one_process(
    world_size: int, name: str, num_steps: int, overlap: float, seed: int, data: st.DataObject
) -> None:
    names = st.sampled_from([table.name for table in (*TABLES, *LATER)])
    sharding = data.draw(st.dictionaries(names, placements(world_size)))
    check(world_size, name, num_steps, overlap, torch.float64, seed=seed, sharding=sharding)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_so_they_are_under_random_delays_of_every_message(name: str) -> None:
    check(3, name, 8, 0.5, torch.float32, seed=1, sharding=MIXED, max_lag_s=0.004)


def test_so_they_are_where_more_ranks_than_whole_tables_leave_some_without_a_row() -> None:
    sharding = {table.name: "table_wise" for table in (*TABLES, *LATER)}
    check(4, "adam", 8, 0.5, torch.float64, seed=2, sharding=sharding)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("world_size", "sharding"),
    [(1, MIXED), (2, ROW_WISE), (2, MIXED), (3, MIXED)],
    ids=["1 mixed", "2 row-wise", "2 mixed", "3 mixed"],
)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_so_they_are_after_200_steps(name: str, overlap: float, world_size: int, sharding: Sharding) -> None:
    check(world_size, name, 200, overlap, torch.float64, seed=7, sharding=sharding)
