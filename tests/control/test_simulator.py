"""The simulated pipelines: laws of their physics, and an oracle that nobody beats."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.control import SimulatedPipeline
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.oracle import best_widths
from lightning_intune.control.physics import load_at, memory_bytes, solve_rate
from lightning_intune.control.world import CONTENTIONS, CROWDS, HELD_OUT, World
from lightning_intune.control.worlds import CROWDED, FULL, HARD, TRAINING, Ranges, draw_worlds
from lightning_intune.errors import ConfigError


def world(cpu_s, *, latency_s=None, cpus=64.0, trainer_s=1e-9, **changes):
    """One pipeline without contention, noise or locks."""
    num = len(cpu_s)
    zeros = np.zeros((1, num))
    fields = {
        "is_stage": np.ones((1, num), dtype=bool),
        "cpu_s": np.array([cpu_s], dtype=float),
        "latency_s": np.array([latency_s or [0.0] * num], dtype=float),
        "gil_share": zeros,
        "lock_s": zeros,
        "jitter": zeros,
        "buffer_items": zeros + 2,
        "under_metered": zeros,
        "room_bytes": zeros + 1e6,
        "high": zeros + 64,
        "trainer_s": np.array([trainer_s]),
        "trainer_cpu_s": np.zeros(1),
        "cpus": np.array([cpus]),
        "others": np.zeros(1),
        "gil_hidden": np.zeros(1),
        "burstiness": np.zeros(1),
        "base_bytes": np.array([1e8]),
        "limit_bytes": np.array([np.inf]),
        "noise": np.array([1e-9]),
        "contention": np.zeros((1, len(CONTENTIONS))),
    }
    return World(**(fields | changes))


def contended(pipeline, **strengths):
    contention = np.zeros((1, len(CONTENTIONS)))
    for name, strength in strengths.items():
        contention[0, CONTENTIONS.index(name)] = strength
    return replace(pipeline, contention=contention)


def rate(pipeline, *widths):
    return float(solve_rate(pipeline, np.array([widths], dtype=float))[0])


def test_the_slowest_stage_sets_the_rate():
    # 10 ms and 20 ms per batch: the second stage makes 50 a second alone, and two of it 100.
    pipeline = world([0.010, 0.020])
    assert rate(pipeline, 1, 1) == pytest.approx(50, rel=1e-4)
    assert rate(pipeline, 1, 2) == pytest.approx(100, rel=1e-4)


def test_no_width_passes_the_roofline():
    # 30 ms of CPU per batch on 2 cores: 66.7 a second, whatever the widths.
    assert rate(world([0.010, 0.020], cpus=2.0), 8, 8) == pytest.approx(2 / 0.030, rel=1e-3)


def test_waiting_needs_workers_but_no_cores():
    # 100 ms of latency: ten workers make 100 a second even on one core that computes 1 ms.
    assert rate(world([0.001], latency_s=[0.099], cpus=1.0), 10) == pytest.approx(100, rel=1e-3)


def test_the_trainer_is_not_overtaken():
    assert rate(world([0.001], trainer_s=0.025), 4) == pytest.approx(40, rel=1e-4)


def test_the_gil_bounds_all_stages_together():
    # Both stages hold the lock all of their 10 ms: with ever more workers at most 1 / 20 ms, less the convoy.
    gil = np.ones((1, 2))
    assert rate(world([0.010, 0.010], gil_share=gil), 1, 1) < 50
    assert rate(world([0.010, 0.010], gil_share=gil), 16, 16) < 50


def test_neighbours_take_their_cores():
    assert rate(world([0.010], cpus=4.0, others=np.array([2.0])), 8) == pytest.approx(200, rel=1e-3)


@pytest.mark.parametrize("kind", range(len(CONTENTIONS)))
def test_every_contention_costs_something(kind):
    light = {"gil_share": np.full((1, 2), 0.1), "burstiness": np.full(1, 0.5)}
    free = world([0.010, 0.010], latency_s=[0.0, 0.2], cpus=4.0, **light)
    assert rate(contended(free, **{CONTENTIONS[kind]: 0.4}), 8, 32) < rate(free, 8, 32)


def test_crowding_makes_batches_dearer_with_every_doubling_of_the_threads_beyond_the_cpus():
    # 10 ms on two cores: 200 a second. Eight threads are twice doubled: the CPU per batch is 1 + 0.5 * 2 times as much.
    crowded = contended(world([0.010], cpus=2.0), crowding=0.5)
    assert rate(crowded, 2) == pytest.approx(200, rel=1e-3)
    assert rate(crowded, 8) == pytest.approx(100, rel=1e-3)


def test_threads_that_wait_for_a_disk_crowd_nothing():
    # 1 ms of CPU in 10: twenty threads keep two cores busy, and no more.
    crowded = contended(world([0.001], latency_s=[0.009], cpus=2.0), crowding=0.5, thrash=2.0)
    assert rate(crowded, 20) == pytest.approx(2000, rel=1e-3)


def test_thrashing_sets_in_late_and_all_at_once():
    # Half of it is paid at three threads per core: 1 + 2 / 2 times the CPU. At 20 per core nearly all of it.
    crowded = contended(world([0.010], cpus=2.0), thrash=2.0)
    assert rate(crowded, 3) > 0.95 * 200
    assert rate(crowded, 6) == pytest.approx(100, rel=1e-3)
    assert rate(crowded, 40) == pytest.approx(200 / 3, rel=0.01)


def test_a_thread_that_waits_for_a_core_with_the_gil_in_hand_leaves_cores_idle():
    free = world([0.010, 0.010], cpus=4.0, gil_share=np.full((1, 2), 0.1), burstiness=np.full(1, 0.5))
    held, widths = contended(free, preemption=1.0), np.array([[16.0, 16.0]])
    shares = [load_at(each, widths, solve_rate(each, widths)).cpu_share[0] for each in (free, held)]
    assert shares[1] < shares[0] - 0.05


def test_a_crowded_world_holds_the_same_pipelines_as_the_one_without():
    crowded, calm = (draw_worlds(np.random.default_rng(7), 64, ranges, 10) for ranges in (CROWDED, HARD))
    first = len(CONTENTIONS) - len(CROWDS)
    for name in ("cpu_s", "latency_s", "lock_s", "cpus", "others", "noise", "under_metered", "high"):
        np.testing.assert_array_equal(getattr(crowded, name), getattr(calm, name))
    np.testing.assert_array_equal(crowded.contention[:, :first], calm.contention[:, :first])
    assert not calm.contention[:, first:].any()
    assert (crowded.contention[:, first:] > 0).any(0).all()


def test_training_shows_neither_the_held_out_kinds_nor_thrashing():
    drawn = draw_worlds(np.random.default_rng(8), 256, TRAINING, 6)
    seen = {name for at, name in enumerate(CONTENTIONS) if bool((drawn.contention[:, at] > 0).any())}
    assert seen == set(CONTENTIONS) - {*HELD_OUT, "thrash"}


@given(seed=st.integers(0, 2**20))
@settings(max_examples=15)
def test_the_cost_of_a_batch_never_falls_with_the_rate(seed):
    rng = np.random.default_rng(seed)
    drawn = draw_worlds(rng, 8, CROWDED, 10)
    widths = np.where(drawn.is_stage, rng.integers(1, 20, drawn.is_stage.shape), 0).astype(float)
    x = solve_rate(drawn, widths)
    slow, fast = load_at(drawn, widths, 0.6 * x), load_at(drawn, widths, 0.99 * x)
    assert (slow.service_s <= fast.service_s + 1e-12).all()


def test_the_oracle_equals_brute_force():
    ranges = replace(CROWDED, stages=(2, 3), cpus=(2.0, 4.0))
    drawn = draw_worlds(np.random.default_rng(3), 24, ranges, 3)
    _, found = best_widths(drawn)
    best = np.zeros(24)
    for widths in itertools.product(range(1, 13), repeat=3):
        tried = np.where(drawn.is_stage, np.array(widths, dtype=float), 0.0)
        legal = (tried <= drawn.high).all(1) & (memory_bytes(drawn, tried) <= drawn.limit_bytes)
        best = np.maximum(best, np.where(legal, solve_rate(drawn, tried), 0.0))
    assert (found >= best * 0.995).all()


@given(seed=st.integers(0, 2**20))
@settings(max_examples=8)
def test_the_oracles_widths_are_legal(seed):
    drawn = draw_worlds(np.random.default_rng(seed), 8, HARD, 10)
    widths, _ = best_widths(drawn)
    assert (widths <= drawn.high).all()
    assert (widths >= drawn.is_stage).all()
    assert (memory_bytes(drawn, widths) <= drawn.limit_bytes).all()


def test_one_seed_gives_one_run():
    fleets = [Fleet.draw(6, FULL, np.random.default_rng(5)) for _ in range(2)]
    for _ in range(5):
        readings = [fleet.read() for fleet in fleets]
        np.testing.assert_array_equal(readings[0].samples_per_s, readings[1].samples_per_s)
        np.testing.assert_array_equal(readings[0].busy, readings[1].busy)
        for fleet in fleets:
            fleet.step(fleet.widths + 1)


def test_a_shift_comes_at_its_turn_and_moves_the_oracle():
    fleet = Fleet.draw(64, replace(FULL, shift_chance=1.0, shift_turns=(3, 3)), np.random.default_rng(1))
    before = fleet.best_rate.copy()
    for _ in range(2):
        fleet.step(fleet.widths)
    np.testing.assert_array_equal(fleet.best_rate, before)
    fleet.step(fleet.widths)
    assert (fleet.best_rate != before).mean() > 0.5
    np.testing.assert_allclose(fleet.best_rate, best_widths(fleet.world)[1], rtol=1e-6)


def test_restarted_pipelines_are_new_and_the_others_go_on():
    fleet = Fleet.draw(4, FULL, np.random.default_rng(2))
    fleet.step(fleet.widths + 1)
    kept = fleet.world.cpu_s[1].copy()
    rows = np.array([True, False, False, False])
    old = fleet.world.cpu_s[0].copy()
    fleet.restart(rows)
    assert fleet.turn.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(fleet.world.cpu_s[1], kept)
    assert not np.array_equal(fleet.world.cpu_s[0], old)


def test_a_fleet_of_given_pipelines_has_no_others():
    fleet = Fleet.of(world([0.01]), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"Fleet\.draw"):
        fleet.restart(np.array([True]))


def test_worker_seconds_add_up_to_the_widths():
    fleet = Fleet.draw(32, replace(FULL, noise=(1e-6, 2e-6)), np.random.default_rng(4))
    fleet.step(np.where(fleet.world.is_stage, 3.0, 0.0))
    reading = fleet.read()
    total = reading.busy + reading.starved + reading.blocked
    np.testing.assert_allclose(total, reading.width, rtol=1e-4)
    assert (reading.cpu + reading.run_delay <= reading.busy + 1e-9).all()


def test_a_simulated_pipeline_shows_cumulative_meters():
    pipeline = SimulatedPipeline(seed=3, ranges=Ranges(noise=(1e-6, 2e-6), shift_chance=0.0), turn_s=0.5)
    before = pipeline.read()
    pipeline.advance()
    window = pipeline.read().since(before)
    assert window.time_s == 0.5
    # samples are counted in thousandths
    assert window.samples_per_s / 1000 == pytest.approx(pipeline.samples_per_s, rel=0.01)
    assert [stage.name for stage in window.stages] == [knob.stage for knob in pipeline.knobs]
