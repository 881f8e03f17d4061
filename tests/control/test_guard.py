"""The safety layer: laws over random pipelines, and single cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_intune.control.action import HOLD, MOVES, MoveSet
from lightning_intune.control.best import BestKnown
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.guard import Guard, Why, fit_memory
from lightning_intune.control.knowledge import Knowledge
from lightning_intune.control.physics import memory_bytes
from lightning_intune.control.worlds import HARD, Ranges

SEEDS = st.integers(0, 2**20)
QUIET_PAIR = replace(
    Fleet.draw(1, Ranges(stages=(2, 2), noise=(0.01, 0.011)), np.random.default_rng(1), max_stages=2).read(),
    low=np.ones((1, 2)), high=np.full((1, 2), 8.0), noise=np.array([0.01]), others=np.zeros(1), wait_share=np.ones(1),
    memory_limit_bytes=np.array([np.inf]), can_move=np.ones((1, 2), dtype=np.bool_),
)  # fmt: skip


def played(seed, num=6, turns=3):
    """A fleet and what is known of it after some turns of random moves."""
    rng = np.random.default_rng(seed)
    fleet = Fleet.draw(num, HARD, rng, max_stages=6)
    knowledge = Knowledge(num, 6)
    for _ in range(turns):
        situation = knowledge.observe(fleet.read())
        wanted = fleet.widths + rng.integers(0, 3, fleet.widths.shape)
        fleet.step(fit_memory(situation.reading, situation.reading.legal(wanted)))
    return fleet, knowledge.observe(fleet.read())


@given(seed=SEEDS)
@settings(max_examples=10)
def test_whatever_is_wanted_the_memory_limit_holds(seed):
    fleet, situation = played(seed)
    fitted = fit_memory(situation.reading, situation.reading.high.copy())
    assert (memory_bytes(fleet.world, fitted) <= fleet.world.limit_bytes).all()


@given(seed=SEEDS)
@settings(max_examples=10)
def test_every_legal_move_leads_to_a_legal_width_and_holding_is_always_legal(seed):
    _, situation = played(seed)
    moves = MoveSet()
    widths = moves.widths(situation)
    legal = moves.legal(situation, widths)
    reading = situation.reading
    assert legal[..., HOLD].all()
    real = reading.is_stage[..., None]
    assert (widths >= reading.low[..., None] * real).all()
    assert (widths <= np.where(real, reading.high[..., None], 0)).all()


@given(seed=SEEDS)
@settings(max_examples=10)
def test_no_two_legal_moves_lead_to_the_same_width(seed):
    _, situation = played(seed)
    moves = MoveSet()
    widths = moves.widths(situation)
    legal = moves.legal(situation, widths)
    for stage in zip(*np.nonzero(situation.reading.is_stage), strict=True):
        taken = widths[stage][legal[stage]]
        assert len(set(taken.tolist())) == len(taken)


@given(seed=SEEDS)
@settings(max_examples=10)
def test_the_move_made_is_recovered_from_the_widths_asked(seed):
    _, situation = played(seed)
    moves = MoveSet()
    widths = moves.widths(situation)
    legal = moves.legal(situation, widths)
    rng = np.random.default_rng(seed)
    made = np.where(legal, rng.random(legal.shape), -1.0).argmax(-1)
    asked = np.take_along_axis(widths, made[..., None], -1)[..., 0]
    found, is_move = moves.index_of(widths, asked)
    assert is_move.all()
    np.testing.assert_array_equal(found[situation.reading.is_stage], made[situation.reading.is_stage])


def test_a_stage_that_stays_put_can_only_hold():
    _, situation = played(1)
    still = replace(situation, reading=replace(situation.reading, can_move=np.zeros_like(situation.reading.can_move)))
    moves = MoveSet()
    legal = moves.legal(still, moves.widths(still))
    assert legal.sum() == legal[..., HOLD].sum()
    assert len(MOVES) == legal.shape[-1]


def judged(situation, wanted):
    num = len(wanted)
    return Guard(num).judge(situation, wanted, (np.zeros(num), np.zeros(num)))


def at_work(*, use, gain, turns=0):
    """Six pipelines after `turns` turns: `use` of the CPUs busy, the model foretelling `gain` times the rate."""
    _, situation = played(3, turns=0)
    reading = replace(situation.reading, cpu_used=use * situation.reading.free_cpus)
    return replace(situation, reading=reading, predicted_proposal=gain * situation.rate, turns=np.full(6, float(turns)))


@pytest.mark.parametrize("use", [1.0, 0.95])
@pytest.mark.parametrize("turns", [0, 5])
def test_a_pipeline_that_fills_the_cpus_is_not_widened(turns: int, use: float):
    situation = at_work(use=use, gain=1.005, turns=turns)
    verdict = judged(situation, situation.reading.width + 1)
    np.testing.assert_array_equal(verdict.widths, situation.reading.width)
    assert (verdict.why == Why.HELD).all()


@pytest.mark.parametrize("other", [{"use": 0.9}, {"gain": 1.2}], ids=str)
def test_a_pipeline_that_may_gain_is_widened(other):
    situation = at_work(**{"use": 1.0, "gain": 1.005} | other)
    wanted = situation.reading.legal(situation.reading.width + 1)
    verdict = judged(situation, wanted)
    moved = (verdict.widths == wanted).all(1) | (verdict.why == Why.MEMORY)
    assert moved.all()
    assert (verdict.why == Why.MOVED).any()


def on_two_cpus(*, use=0.9, rate=1.0, foretold=1.1, expected=1.1, memory=5.0):
    """Six pipelines on 2 CPUs, which at `rate` would be full; memory in bytes of what one worker more in each holds."""
    situation = at_work(use=1.0, gain=1.0, turns=5)
    reading = situation.reading
    cpus = np.full(6, 2.0)
    reading = replace(
        reading, cpus=cpus, others=np.zeros(6), cpu_used=use * cpus, memory_limit_bytes=np.full(6, np.inf),
        memory_bytes=memory * (reading.room_bytes * reading.is_stage).sum(1),
    )  # fmt: skip
    roofline = replace(situation.proposal, roofline_samples_per_s=situation.rate / rate)
    return replace(
        situation, reading=reading, proposal=roofline, predicted_proposal=foretold * situation.rate,
        predicted=expected * situation.rate,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        ({"use": 0.925, "rate": 0.9}, True),  # full by this turn
        ({"use": 0.9, "rate": 0.925}, True),  # full by all turns at these widths
        ({"use": 0.9, "rate": 0.9}, False),
        ({"use": 0.925, "foretold": 1.15}, False),  # a gain over what is expected here already
        ({"use": 0.925, "memory": 5.5}, False),  # a gain for less than a fifth of the memory
        ({"use": 0.925, "memory": 4.5}, True),
    ],
    ids=str,
)
def test_last_percents_of_the_cpus_are_not_paid_for_with_much_memory(case, holds):
    situation = on_two_cpus(**{"memory": 4.9} | case)
    verdict = judged(situation, situation.reading.width + situation.reading.is_stage)
    assert (verdict.why == (Why.HELD if holds else Why.MOVED)).all()


def test_a_pipeline_that_fills_the_cpus_still_goes_back_to_wider_widths_that_were_better():
    situation = at_work(use=1.0, gain=1.0, turns=5)
    best = situation.reading.legal(situation.reading.width + 1)
    situation = replace(situation, best_widths=best, best_rate=3.0 * situation.rate, visits=np.full(6, 9.0))
    verdict = judged(situation, situation.reading.width)
    went = (verdict.widths == best).all(1) & (verdict.why == Why.REVERTED)
    assert (went | (verdict.why == Why.MEMORY)).all()
    assert went.any()


def test_a_pipeline_that_fills_the_cpus_may_still_be_narrowed():
    situation = at_work(use=1.0, gain=1.0)
    wide = replace(situation, reading=replace(situation.reading, width=situation.reading.width * 3))
    verdict = judged(wide, situation.reading.width)
    np.testing.assert_array_equal(verdict.widths, situation.reading.width)


def at_rest():
    """Six pipelines long after their last shift, a worker per stage short of the best widths, nothing foretold."""
    _, situation = played(5, turns=0)
    reading = replace(
        situation.reading, cpu_used=0.5 * situation.reading.free_cpus, memory_limit_bytes=np.full(6, np.inf)
    )
    return replace(
        situation,
        reading=reading,
        best_widths=reading.legal(reading.width + 1),
        predicted_proposal=situation.rate,
        turns=np.full(6, 30.0),
        visits=np.full(6, 5.0),
        best_rate=situation.rate,
    )


@pytest.mark.parametrize("step", [0, 2])
def test_a_rest_ends_where_the_policy_is_sure_and_only_there(step):
    situation = at_rest()
    wanted = situation.reading.legal(situation.reading.width + step)
    is_sure = np.arange(6) % 2 == 0
    none = (np.zeros(6), np.zeros(6))
    verdict = Guard(6).judge(situation, wanted, none, is_sure)
    np.testing.assert_array_equal(verdict.widths[is_sure], wanted[is_sure])
    np.testing.assert_array_equal(verdict.widths[~is_sure], situation.best_widths[~is_sure])
    assert (verdict.why[~is_sure] == Why.RESTING).all()
    np.testing.assert_array_equal(Guard(6).judge(situation, wanted, none).widths, situation.best_widths)


def test_however_sure_a_policy_is_what_was_measured_worse_is_not_tried_again():
    situation = at_rest()
    wanted = situation.reading.legal(situation.reading.width + 2)
    known = (0.5 * situation.best_rate, np.full(6, 9.0))
    verdict = Guard(6).judge(situation, wanted, known, np.ones(6, dtype=np.bool_))
    np.testing.assert_array_equal(verdict.widths, situation.best_widths)


@pytest.mark.parametrize(("rate", "turns", "is_tried"), [(88.0, 1, False), (88.0, 15, True), (50.0, 500, False)])
def test_what_did_a_little_harm_once_may_be_tried_again_later_and_what_did_much_may_not(rate, turns, is_tried):
    situation = at_rest()
    situation = replace(situation, turns=np.full(6, 5.0), reading=replace(situation.reading, noise=np.full(6, 0.05)))
    width, wanted = situation.reading.width, situation.reading.legal(situation.reading.width + 2)
    best = BestKnown(6, width.shape[1])
    valid = np.ones(6, dtype=np.bool_)
    best.update(wanted, np.full(6, rate), situation.reading.noise, valid)
    for _ in range(turns):
        best.update(width, np.full(6, 100.0), situation.reading.noise, valid)
    far = replace(situation.proposal, roofline_samples_per_s=np.full(6, 200.0))  # half of the CPUs are free
    at_best = replace(situation, best_widths=width, best_rate=np.full(6, 100.0), rate=np.full(6, 100.0), proposal=far)
    verdict = Guard(6).judge(at_best, wanted, best.known(wanted))
    np.testing.assert_array_equal(verdict.widths, wanted if is_tried else width)


def test_one_lucky_turn_is_not_called_best():
    best = BestKnown(1, 1)
    noise, valid = np.array([0.10]), np.array([True])
    for rate in (100.0, 101.0, 99.0, 100.0):
        best.update(np.array([[4.0]]), np.array([rate]), noise, valid)
    best.update(np.array([[9.0]]), np.array([103.0]), noise, valid)
    widths, rate, visits = best.best(noise)
    assert widths[0, 0] == 4.0
    assert 2.0 < visits[0] < 4.0
    assert rate[0] == pytest.approx(100.0, abs=0.2)


def test_a_clearly_faster_setting_becomes_best_at_once():
    best = BestKnown(1, 1)
    noise, valid = np.array([0.05]), np.array([True])
    best.update(np.array([[1.0]]), np.array([50.0]), noise, valid)
    best.update(np.array([[4.0]]), np.array([150.0]), noise, valid)
    assert best.best(noise)[0][0, 0] == 4.0


def test_the_table_keeps_the_best_when_it_is_full():
    best = BestKnown(1, 1)
    noise, valid = np.array([0.01]), np.array([True])
    for width in range(1, 60):
        rate = 500.0 if width == 7 else 100.0 + width
        best.update(np.array([[float(width)]]), np.array([rate]), noise, valid)
    assert best.best(noise)[0][0, 0] == 7.0


def crowded(width, rate, *, waits):
    """A turn of two equal stages that use one CPU of two: `waits` of a stage's workers wait for a core."""
    num = np.full((1, 2), 0.5)
    return replace(
        QUIET_PAIR, width=np.full((1, 2), width), busy=num + waits, cpu=num, run_delay=np.full((1, 2), waits),
        samples_per_s=np.array([rate]), cpu_used=np.array([1.0]), cpus=np.array([2.0]),
    )  # fmt: skip


def asked(guard, knowledge, reading):
    """The agent wants to stay: what the guard makes of it."""
    situation = knowledge.observe(reading)
    verdict = guard.judge(situation, reading.width, knowledge.best.known(reading.width))
    return verdict.widths[0].tolist(), Why(int(verdict.why[0]))


def test_fewer_workers_are_tried_where_some_only_wait_for_a_core_and_stay_if_they_are_better():
    guard, knowledge = Guard(1), Knowledge(1, 2)
    turns = [asked(guard, knowledge, crowded(3.0, 100.0, waits=2.5)) for _ in range(3)]
    assert turns[-1] == ([1.0, 1.0], Why.FEWER)
    assert all(widths == [3.0, 3.0] for widths, _ in turns[:-1])
    assert asked(guard, knowledge, crowded(1.0, 150.0, waits=0.0))[0] == [1.0, 1.0]
    assert asked(guard, knowledge, crowded(1.0, 150.0, waits=0.0))[0] == [1.0, 1.0]


def test_fewer_workers_that_were_worse_are_left_and_tried_again_ever_more_rarely():
    guard, knowledge = Guard(1), Knowledge(1, 2)
    width, tried = 3.0, []
    for number in range(120):
        rate, waits = (100.0, 2.5) if width == 3.0 else (60.0, 0.0)
        widths, why = asked(guard, knowledge, crowded(width, rate, waits=waits))
        width = widths[0]
        if why is Why.FEWER:
            tried.append(number)
    gaps = np.diff(tried)
    assert 3 <= len(tried) <= 4
    assert (gaps[1:] >= 2 * gaps[:-1]).all()


def test_workers_that_wait_for_data_or_latency_are_not_taken_away():
    guard, knowledge = Guard(1), Knowledge(1, 2)
    for _ in range(12):
        reading = replace(crowded(3.0, 100.0, waits=2.5), run_delay=np.zeros((1, 2)))
        assert asked(guard, knowledge, reading)[0] == [3.0, 3.0]


def test_what_did_harm_is_not_tried_with_even_more_workers():
    # 4/5 brought 70 where 1/1 brings 100: 5/6 is taboo, and 2/2, 5/1 and 4/4 are not.
    best = BestKnown(1, 2)
    for widths, rate in (((1.0, 1.0), 100.0), ((4.0, 5.0), 70.0)):
        best.update(np.array([widths]), np.array([rate]), np.array([0.01]), np.array([True]))
    knowledge = Knowledge(1, 2)
    knowledge.best = best
    situation = knowledge.observe(crowded(1.0, 100.0, waits=0.0))
    verdicts = {}
    for wanted in ((5.0, 6.0), (4.0, 5.0), (2.0, 2.0), (5.0, 1.0), (4.0, 4.0)):
        known = best.known_below(np.array([wanted]), situation.best_widths)
        verdicts[wanted] = Why(int(Guard(1).judge(situation, np.array([wanted]), known).why[0]))
    assert [wanted for wanted, why in verdicts.items() if why is Why.TABOO] == [(5.0, 6.0), (4.0, 5.0)]
