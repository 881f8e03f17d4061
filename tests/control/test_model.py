"""The service-time model: what it learns of a pipeline whose costs are known, and what it proposes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.control.knowledge import Knowledge
from lightning_intune.control.model import ModelSettings, ServiceModel
from lightning_intune.control.proposal import propose
from lightning_intune.control.reading import Reading


def reading(width, *, rate, cpu_s, wait_s=None, cpus=8.0, wait_share=1.0, delay_s=0.0, high=64.0, **changes):
    """One pipeline at `rate` samples/s whose stages compute `cpu_s` and wait `wait_s` per sample."""
    cpu_s = np.array([cpu_s], dtype=float)
    wait_s = np.zeros_like(cpu_s) if wait_s is None else np.array([wait_s], dtype=float)
    width = np.array([width], dtype=float)
    busy = rate * (cpu_s + wait_s + delay_s)
    fields = {
        "is_stage": np.ones(width.shape, dtype=bool),
        "can_move": np.ones(width.shape, dtype=bool),
        "width": width,
        "low": np.ones_like(width),
        "high": np.full_like(width, high),
        "busy": busy,
        "starved": np.maximum(width - busy, 0.0),
        "blocked": np.zeros_like(width),
        "cpu": rate * cpu_s,
        "run_delay": np.full_like(width, rate * delay_s),
        "fill": np.zeros_like(width),
        "room_bytes": np.full_like(width, 1e6),
        "room_error": np.array([0.08]),
        "samples_per_s": np.array([float(rate)]),
        "wait_share": np.array([wait_share]),
        "cpus": np.array([cpus]),
        "others": np.zeros(1),
        "cpu_used": (rate * cpu_s).sum(1),
        "memory_bytes": np.array([1e8]),
        "memory_limit_bytes": np.array([1e12]),
        "noise": np.array([0.03]),
        "is_valid": np.array([True]),
    }
    return Reading(**(fields | changes))


def fitted(*readings):
    model = ServiceModel(1, readings[0].width.shape[1])
    for each in readings:
        model.update(each)
    return model


def test_costs_are_seconds_per_sample():
    model = fitted(reading([1, 1], rate=25, cpu_s=[0.010, 0.040], wait_s=[0.005, 0.0]))
    np.testing.assert_allclose(model.cpu_s, [[0.010, 0.040]])
    np.testing.assert_allclose(model.waits()[0], [[0.005, 0.0]], atol=1e-9)


def test_the_roofline_is_cores_over_cpu_per_sample():
    model = fitted(reading([1, 1], rate=25, cpu_s=[0.010, 0.040]))
    assert model.roofline(np.array([8.0]))[0] == pytest.approx(160.0)


def test_waiting_that_grows_with_the_workers_is_a_slope():
    # wait = 5 ms + 2 ms per busy worker; seen at two widths.
    turns = []
    for width, rate in ((1, 50.0), (4, 120.0), (8, 160.0)):
        base, slope, cpu_s = 0.005, 0.002, 0.010
        service = (cpu_s + base) / (1 - rate * slope)
        turns.append(reading([width], rate=rate, cpu_s=[cpu_s], wait_s=[service - cpu_s]))
    base, slope = fitted(*turns).waits()
    assert slope[0, 0] == pytest.approx(0.002, rel=0.25)
    assert base[0, 0] == pytest.approx(0.005, rel=0.5)


def test_the_shift_of_one_stage_ends_what_was_known_of_every_stages_waiting():
    turns = [reading([w, w], rate=x, cpu_s=[0.01, 0.01], wait_s=[0.0, 0.001 * w]) for w, x in ((1, 50.0), (8, 160.0))]
    model = fitted(*turns)
    assert model.waits()[1][0, 1] > 0
    model.reset_stages(np.array([[True, False]]))
    model.update(turns[-1])
    assert (model.waits()[1] == 0).all()


@given(seed=st.integers(0, 2**32 - 1), lock_reach=st.floats(1.01, 2.0))
@settings(max_examples=50)
def test_no_slope_denies_the_rate_that_was_just_carried(seed, lock_reach):
    rng = np.random.default_rng(seed)
    model = ServiceModel(1, 3, ModelSettings(lock_reach=lock_reach))
    for _ in range(6):
        width, rate = rng.integers(1, 30, 3), float(rng.uniform(20, 200))
        cpu_s = rng.uniform(0.0, 0.01, 3)
        model.update(reading(width, rate=rate, cpu_s=cpu_s, wait_s=np.maximum(width / rate - cpu_s, 0.0), cpus=64.0))
    need = model.needs(np.array([64.0]))(np.array([rate]))
    assert np.isfinite(need).all()


def test_without_a_change_of_width_nothing_is_called_a_lock():
    same = reading([2], rate=50, cpu_s=[0.01], wait_s=[0.03])
    _, slope = fitted(same, same, same).waits()
    assert slope[0, 0] == pytest.approx(0.0, abs=1e-9)


def proposal(model, at, *, best=0.0, fresh=True):
    return propose(model, at, np.array([best]), np.array([fresh]), np.ones(1))


def test_a_proposal_gives_each_stage_what_it_needs_at_the_rate_the_cpus_allow():
    at = reading([1, 1], rate=25, cpu_s=[0.010, 0.040])
    found = proposal(fitted(at), at)
    # at most 160/s on 8 cores: 1.6 and 6.4 busy workers, more for the wait for a core and the headroom
    assert found.widths[0, 0] in {2, 3}
    assert 6 <= found.widths[0, 1] <= 12
    assert 130 <= found.samples_per_s[0] <= 160


def test_waiting_stages_get_workers_beyond_the_cpus():
    at = reading([1, 1], rate=10, cpu_s=[0.001, 0.010], wait_s=[0.099, 0.0], cpus=2.0)
    found = proposal(fitted(at), at)
    # 2 cores / 11 ms = 182/s: 18 readers that mostly wait, 2 workers that compute, more for the wait for a core
    assert 15 <= found.widths[0, 0] <= 22
    assert 2 <= found.widths[0, 1] <= 6


def test_a_stage_alone_that_only_computes_needs_as_many_workers_as_cpus():
    alone = reading([1], rate=100, cpu_s=[0.010], cpus=4.0)
    knowledge = Knowledge(1, 1)
    situation = knowledge.observe(alone)
    assert situation.proposal.widths.tolist() == [[4.0]]
    assert situation.reading.high.tolist() == [[5.0]]  # one more than the CPUs may be tried, and no more


@pytest.mark.parametrize(
    ("cpu_s", "wait_s"),
    [
        pytest.param([0.010], [0.004], id="it waits too"),
        pytest.param([0.010, 0.0005], None, id="another works too"),
    ],
)
def test_a_stage_that_waits_or_is_fed_by_another_may_get_more(cpu_s, wait_s):
    knowledge = Knowledge(1, len(cpu_s))
    rate = 0.95 / (cpu_s[0] + sum(wait_s or []))
    situation = knowledge.observe(reading([1] * len(cpu_s), rate=rate, cpu_s=cpu_s, wait_s=wait_s, cpus=4.0))
    assert situation.proposal.widths[0, 0] > 4
    assert situation.reading.high[0, 0] > 10


def test_a_trainer_that_never_waits_gets_no_wider_pipeline():
    at = reading([2, 2], rate=25, cpu_s=[0.010, 0.040], wait_share=0.0)
    found = proposal(fitted(at), at)
    assert found.widths[0].tolist() == [1, 2]


def test_neighbours_cpus_are_not_proposed_away():
    at = reading([1, 1], rate=25, cpu_s=[0.010, 0.040], others=np.array([4.0]))
    alone = proposal(fitted(replace(at, others=np.zeros(1))), replace(at, others=np.zeros(1)))
    shared = proposal(fitted(at), at)
    assert shared.widths.sum() < alone.widths.sum()
    assert shared.samples_per_s[0] == pytest.approx(0.5 * alone.samples_per_s[0], rel=0.15)


def test_memory_bounds_a_proposal():
    at = reading([1, 1], rate=25, cpu_s=[0.010, 0.040], memory_limit_bytes=np.array([1e8 + 6.0e6]))
    found = proposal(fitted(at), at)
    # room for 6 MB, less 8 %: 5 workers of 1 MB
    assert found.widths.sum() <= 5


def test_an_aim_stays_within_reach_of_the_best_measured_rate():
    at = reading([1, 1], rate=25, cpu_s=[0.010, 0.040])
    found = proposal(fitted(at), at, best=50.0, fresh=False)
    assert found.samples_per_s[0] <= ModelSettings().reach * 50.0 + 1e-6


def test_idle_workers_and_free_cpus_behind_a_waiting_trainer_mean_a_hidden_lock():
    at = reading([4, 4], rate=50, cpu_s=[0.010, 0.010], cpus=8.0)
    found = proposal(fitted(at), at)
    assert found.widths.sum() <= 8


def test_a_turn_that_is_not_valid_teaches_nothing():
    good = reading([1, 1], rate=25, cpu_s=[0.010, 0.040])
    bad = replace(good, cpu=good.cpu * 9, is_valid=np.array([False]))
    model, same = fitted(good), fitted(good, bad)
    np.testing.assert_array_equal(model.cpu_s, same.cpu_s)


def test_a_stage_that_became_four_times_slower_is_noticed_at_once():
    knowledge = Knowledge(1, 2)
    before = reading([2, 7], rate=150, cpu_s=[0.010, 0.040])
    for _ in range(4):
        assert not knowledge.observe(before).has_shifted[0]
    after = reading([2, 7], rate=44, cpu_s=[0.010, 0.160])
    situation = knowledge.observe(after)
    assert situation.has_shifted[0]
    np.testing.assert_allclose(situation.cpu_s[0], [0.010, 0.160], rtol=0.01)


def test_a_stage_of_one_busy_worker_among_many_is_watched_too():
    knowledge = Knowledge(1, 2)
    before = reading([40, 1], rate=100, cpu_s=[0.0, 0.004], wait_s=[0.38, 0.0])
    for _ in range(4):
        assert not knowledge.observe(before).has_shifted[0]
    # its one worker is now always busy, at 1 / 0.0112 samples/s: a tenth less than before
    after = reading([40, 1], rate=89, cpu_s=[0.0, 0.0112], wait_s=[0.38, 0.0])
    assert knowledge.observe(after).has_shifted[0]


def test_fewer_cpus_are_noticed_at_once():
    knowledge = Knowledge(1, 1)
    before = reading([4], rate=300, cpu_s=[0.010], cpus=4.0)
    for _ in range(3):
        knowledge.observe(before)
    assert knowledge.observe(replace(before, cpus=np.array([2.0]))).has_shifted[0]


def test_noise_is_no_shift():
    rng = np.random.default_rng(0)
    knowledge = Knowledge(1, 2)
    shifts = 0
    for _ in range(200):
        rate = 150 * np.exp(0.05 * rng.normal())
        each = reading([2, 7], rate=rate, cpu_s=[0.010 * np.exp(0.02 * rng.normal()), 0.040], noise=np.array([0.05]))
        shifts += int(knowledge.observe(each).has_shifted[0])
    assert shifts <= 2


def test_memory_that_the_allocator_keeps_counts_as_free():
    knowledge = Knowledge(1, 1)
    lean = reading([1], rate=50, cpu_s=[0.01], memory_bytes=np.array([1.0e8]), memory_limit_bytes=np.array([2e8]))
    knowledge.observe(lean)
    # The buffers grew to 64 MB and were given back, but the process still holds 180 MB.
    kept = replace(lean, memory_bytes=np.array([1.8e8]))
    situation = knowledge.observe(kept)
    assert situation.reading.memory_bytes[0] == pytest.approx(1.0e8)
