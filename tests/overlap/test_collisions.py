"""The rows two batches share are found whoever asks for them and however often."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.overlap import SGD, Table
from lightning_intune.overlap.shard import Shard
from lightning_intune.overlap.stack import Stack
from lightning_intune.overlap.turn import Turn, collide

NUM_ROWS = 12
PLACES = st.lists(st.integers(0, NUM_ROWS - 1), max_size=20)


def shard() -> Shard:
    table = Table(name="t", num_embeddings=NUM_ROWS, embedding_dim=1, feature_names=("a",))
    return Shard(Stack([table], 1), SGD(lr=0.1), 0, torch.float32)


def turn(number: int, places: list[int]) -> Turn:
    asked = torch.tensor(places, dtype=torch.int64)
    return Turn(number=number, requests=[], asked=[asked], asked_counts=[[len(places)]])


def both(turns: list[list[int]]) -> list[tuple[list[bool], list[bool]]]:
    """(late, urgent) of every turn but the first."""
    held, out = shard(), []
    before = turn(1, turns[0])
    held.last_reader[before.asked[0]] = before.number
    for number, places in enumerate(turns[1:], 2):
        now = turn(number, places)
        [late], [urgent] = collide(before, now, [held])
        out.append((late.tolist(), urgent.tolist()))
        before = now
    return out


def test_a_row_asked_for_twice_collides_twice_and_one_of_two_turns_ago_not_at_all() -> None:
    first, second = both([[3, 4, 3], [4, 7, 4], [3, 7, 7]])
    assert first == ([True, False, True], [False, True, False])
    assert second == ([False, True, True], [False, True, False])


@given(turns=st.lists(PLACES, min_size=2, max_size=6))
def test_exactly_the_rows_of_both_turns_collide(turns: list[list[int]]) -> None:
    expected = [
        ([place in before for place in now], [place in now for place in before]) for before, now in pairwise(turns)
    ]
    assert both(turns) == expected
