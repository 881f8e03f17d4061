"""Dividing what several share: laws, and cases worked out by hand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.control.arbiter import LEAST_SHARE, Arbiter, divide

AMOUNTS = st.floats(0.0, 1e3) | st.just(math.nan) | st.just(math.inf)
TOTALS = st.floats(0.1, 1e12)


def named(values):
    return dict(enumerate(values))


@given(total=TOTALS, wants=st.lists(AMOUNTS, min_size=1, max_size=9), floors=st.lists(st.floats(0.0, 1e12), max_size=9))
def test_parts_sum_to_the_total_and_nobody_starves(total, wants, floors):
    parts = divide(total, named(wants), named(floors))
    assert sum(parts.values()) == pytest.approx(total)
    assert min(parts.values()) > 0
    if not any(floors):
        assert min(parts.values()) >= (1 - 1e-9) * LEAST_SHARE * total / len(wants)


@given(total=TOTALS, wants=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=9))
def test_who_wants_more_gets_no_less(total, wants):
    parts = divide(total, named(wants))
    ranked = sorted(range(len(wants)), key=wants.__getitem__)
    for less, more in pairwise(ranked):
        assert parts[more] >= parts[less] * (1 - 1e-9)


@given(wants=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=9), spare=st.floats(0.0, 5.0))
def test_enough_for_all_gives_all_what_they_want(wants, spare):
    total = max(0.1, sum(wants) / (1.0 - LEAST_SHARE) + spare)  # the least shares take at most that part of it
    parts = divide(total, named(wants))
    assert all(parts[at] >= want * (1 - 1e-9) for at, want in enumerate(wants))


@pytest.mark.parametrize(
    ("total", "wants", "floors", "parts"),
    [
        # b and c share what a leaves.
        (4.0, [0.5, 9.0, 9.0], [], [0.5, 1.75, 1.75]),
        # a quarter of an equal part, 0.25, though it asks for nothing
        (2.0, [0.0, 9.0], [], [0.25, 1.75]),
        # twice what both want: each gets twice that
        (6.0, [1.0, 2.0], [], [2.0, 4.0]),
        # what is held stays: 6 of 10, and the other gets the rest
        (10.0, [6.0, 9.0], [6.0, 1.0], [6.0, 4.0]),
        # more is held than there is: by what is held
        (10.0, [9.0, 9.0], [15.0, 5.0], [7.5, 2.5]),
        # a need that is not known counts as an equal part
        (3.0, [math.nan, 9.0, 0.5], [], [1.0, 1.5, 0.5]),
    ],
    ids=["two-hungry", "floor", "left-over", "held", "over-held", "unknown"],
)
def test_worked_out_by_hand(total, wants, floors, parts):
    assert list(divide(total, named(wants), named(floors)).values()) == pytest.approx(parts)


def test_shares_stay_while_needs_change_little():
    arbiter = Arbiter(least_change=0.15)
    first = arbiter.shares(2.0, {"a": 1.0, "b": 5.0})
    assert first == pytest.approx({"a": 0.5, "b": 0.5})
    assert arbiter.shares(2.0, {"a": 0.9, "b": 5.0}) == first
    # 0.8 of 2 CPUs is a fifth less than half of them.
    assert arbiter.shares(2.0, {"a": 0.8, "b": 5.0}) == pytest.approx({"a": 0.4, "b": 0.6})


def test_one_more_to_share_with_changes_the_shares_at_once():
    arbiter = Arbiter()
    assert arbiter.shares(2.0, {"a": 1.0}) == {"a": 1.0}
    assert arbiter.shares(2.0, {"a": 1.0, "b": 1.0}) == {"a": 0.5, "b": 0.5}
