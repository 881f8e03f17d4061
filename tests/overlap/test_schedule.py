"""The model of the schedule, on cases worked out by hand and as laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_intune.errors import ConfigError
from lightning_intune.overlap import Link
from lightning_intune.overlap.schedule import Workload, predict

LINK = Link(bytes_per_s=1e6)


def work(**changes: Any) -> Workload:
    return Workload(**{"compute_s": 0.2, "num_rows": 1000, "row_bytes": 200, "collision_share": 0.25, **changes})


def test_two_ranks_wait_for_both_ways_of_what_collides_only() -> None:
    # Half of 1000 rows of 200 bytes cross: 0.1 s each way for all, 0.025 s for a quarter.
    assert predict(work(), LINK, 2, overlap=False).exposed_s == pytest.approx(0.2)
    assert predict(work(), LINK, 2, overlap=True).exposed_s == pytest.approx(0.05)


def test_what_compute_cannot_cover_is_waited_for() -> None:
    # Nothing computed: ids 2 ms, headers 16 us and marks 1 ms, early rows 75 ms, late ones and urgent gradients 50 ms,
    # the other gradients 75 ms: all of it.
    exposed_s = predict(work(compute_s=0.0), LINK, 2, overlap=True).exposed_s
    assert exposed_s == pytest.approx(0.002 + 0.000016 + 0.001 + 0.075 + 0.05 + 0.075)


def test_alone_nothing_is_waited_for() -> None:
    assert predict(work(), LINK, 1, overlap=True).exposed_share == 0.0


@given(
    num_ranks=st.sampled_from([2, 3, 64, 1024]),
    collisions=st.floats(0, 1),
    compute_s=st.floats(0.5, 2),
    delay_s=st.floats(0, 1e-3),
)
def test_where_compute_covers_the_rest_overlap_waits_for_the_collisions_share(
    num_ranks: int, collisions: float, compute_s: float, delay_s: float
) -> None:
    link = Link(delay_s=delay_s, bytes_per_s=1e6)
    given_work = work(collision_share=collisions, compute_s=compute_s)
    ours, waiting = (predict(given_work, link, num_ranks, overlap=way).exposed_s for way in (True, False))
    assert ours == pytest.approx(2 * delay_s + collisions * (waiting - 2 * delay_s), abs=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: work(collision_share=1.5),
        lambda: work(owner_skew=0.5),
        lambda: work(compute_s=-1.0),
        lambda: predict(work(), LINK, 0, overlap=True),
        lambda: predict(work(), LINK, 2, overlap=True, num_steps=1),
    ],
    ids=["share", "skew", "time", "ranks", "steps"],
)
def test_what_cannot_be_played_through_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
