"""The learning rules, against numbers worked out by hand, and the torch learner against the NumPy network."""

import numpy as np
import pytest
import torch

from lightning_intune.control.action import MOVES
from lightning_intune.control.learner import Learner, joint_values
from lightning_intune.control.learning import double_q_target, n_step_return, polyak
from lightning_intune.control.live_learner import LiveLearner
from lightning_intune.control.observation import GLOBAL_FEATURES, STAGE_FEATURES, Observation
from lightning_intune.control.qnet import QNet, initial_weights, joint_index, summary
from lightning_intune.control.replay import Replay
from lightning_intune.control.steps import Batch

STAGES, WHOLE, NUM_MOVES = len(STAGE_FEATURES), len(GLOBAL_FEATURES), len(MOVES)


def seen(rng, num_pipelines=4, num_stages=3):
    is_stage = np.ones((num_pipelines, num_stages), dtype=bool)
    is_stage[0, -1] = False
    stages = rng.normal(size=(num_pipelines, num_stages, STAGES)) * is_stage[..., None]
    return Observation(stages=stages, whole=rng.normal(size=(num_pipelines, WHOLE)), is_stage=is_stage)


def no_others(num, num_stages):
    together = np.zeros((num, num_stages, 5), dtype=np.int64)
    summaries = np.zeros((num, len(summary(seen(np.random.default_rng(0)))[0])), dtype=np.float32)
    return {
        "summary": summaries,
        "next_summary": summaries,
        "together": together,
        "next_together": together,
        "other_moves": np.zeros((num, 0, num_stages), dtype=np.int64),
        "other_gains": np.zeros((num, 0), dtype=np.float32),
    }


def legal_moves(rng, observation):
    legal = rng.random((*observation.is_stage.shape, NUM_MOVES)) < 0.6
    legal[..., 0] = True
    return legal


def test_an_n_step_return_discounts_each_later_reward_once_more():
    # 1 + 0.6 * 2 + 0.36 * 3
    assert n_step_return([1.0, 2.0, 3.0], 0.6) == pytest.approx(3.28)


def test_an_n_step_return_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        n_step_return([], 0.5)


def test_a_double_q_target_adds_the_discounted_value_of_the_online_choice():
    # target network: Q(a0) = 5, Q(a1) = 2; the online network prefers a1, so 2 counts, not the greater 5.
    assert double_q_target(1.0, 0.216, 2.0) == pytest.approx(1.432)


def test_an_ended_episode_has_no_future():
    assert double_q_target(1.0, 0.0, 100.0) == 1.0


def test_polyak_moves_the_target_a_share_of_the_way():
    assert polyak(np.array([0.0, 2.0]), np.array([1.0, 1.0]), 0.1).tolist() == pytest.approx([0.1, 1.9])


def test_numpy_inference_and_torch_learning_compute_the_same_network():
    rng = np.random.default_rng(0)
    weights = initial_weights(NUM_MOVES, rng)
    observation = seen(rng)
    legal = legal_moves(rng, observation)
    tensors = {name: torch.tensor(array) for name, array in weights.items()}
    moves = np.zeros(observation.is_stage.shape, dtype=np.int64)
    together = np.zeros((*moves.shape, 5), dtype=np.int64)
    together[..., 1] = 1
    values = joint_values(
        tensors,
        torch.tensor(observation.stages, dtype=torch.float32),
        torch.tensor(observation.whole, dtype=torch.float32),
        torch.tensor(observation.is_stage),
        torch.tensor(legal),
        torch.tensor(summary(observation)),
        torch.tensor(together),
    )
    net = QNet(weights)
    ours, joint = net.values(observation, legal)
    allowed = legal & observation.is_stage[..., None]
    np.testing.assert_allclose(ours[allowed], values.advantage.numpy()[allowed], atol=1e-5)
    np.testing.assert_allclose(joint, values.joint.numpy(), atol=1e-5)
    np.testing.assert_allclose(net.value(observation), values.value.numpy(), atol=1e-5)
    # All stages hold: the first joint move, valued as a whole. Two other moves: departures from the proposal, move 1.
    np.testing.assert_allclose(values.gain(torch.tensor(moves)).numpy(), joint[:, 0], atol=1e-5)
    departs = np.where(observation.is_stage, values.advantage.numpy()[..., 2] - values.advantage.numpy()[..., 1], 0.0)
    mixed = values.gain(torch.tensor(moves + 2)).numpy()
    np.testing.assert_allclose(mixed, joint[:, 1] + departs.sum(1), atol=1e-5)


def test_a_joint_move_is_known_by_the_moves_of_its_stages():
    together = np.zeros((1, 3, 5), dtype=np.int64)
    together[..., 1], together[..., 4] = 1, [0, 1, 0]
    assert joint_index(together, np.array([[0, 0, 0]])).tolist() == [0]
    assert joint_index(together, np.array([[1, 1, 1]])).tolist() == [1]
    assert joint_index(together, np.array([[0, 1, 0]])).tolist() == [4]
    assert joint_index(together, np.array([[0, 1, 2]])).tolist() == [5]  # mixed


def test_learning_brings_the_value_of_a_move_to_its_reward():
    rng = np.random.default_rng(1)
    observation = seen(rng, num_pipelines=16)
    legal = legal_moves(rng, observation)
    moves = np.zeros(observation.is_stage.shape, dtype=np.int64)
    batch = Batch(
        stages=observation.stages.astype(np.float32),
        whole=observation.whole.astype(np.float32),
        is_stage=observation.is_stage,
        legal=legal,
        moves=moves,
        returns=np.full(16, 0.7, dtype=np.float32),
        discount=np.zeros(16, dtype=np.float32),
        next_stages=observation.stages.astype(np.float32),
        next_whole=observation.whole.astype(np.float32),
        next_legal=legal,
        **no_others(16, 3),
        weight=np.ones(16, dtype=np.float32),
    )
    learner = Learner(initial_weights(NUM_MOVES, rng), lr=3e-3)
    errors = [learner.step(batch) for _ in range(150)]
    assert errors[-1] < 0.1 * errors[0]


def test_a_step_of_weight_zero_teaches_nothing():
    rng = np.random.default_rng(2)
    observation = seen(rng)
    legal = legal_moves(rng, observation)
    weights = initial_weights(NUM_MOVES, rng)
    learner = Learner(weights)
    flat = {"stages": observation.stages.astype(np.float32), "whole": observation.whole.astype(np.float32)}
    learner.step(
        Batch(
            **flat,
            is_stage=observation.is_stage,
            legal=legal,
            moves=np.zeros(observation.is_stage.shape, dtype=np.int64),
            returns=np.full(4, 9.0, dtype=np.float32),
            discount=np.zeros(4, dtype=np.float32),
            next_stages=flat["stages"],
            next_whole=flat["whole"],
            next_legal=legal,
            **no_others(4, 3),
            weight=np.zeros(4, dtype=np.float32),
        )
    )
    for name, array in learner.weights().items():
        np.testing.assert_array_equal(array, weights[name])


def replayed(num_turns, starts=()):
    rng = np.random.default_rng(3)
    replay = Replay(64, 1, 1, NUM_MOVES)
    for turn in range(num_turns):
        observation = seen(rng, 2, 1)
        first = Observation(
            stages=observation.stages[:1], whole=observation.whole[:1], is_stage=np.ones((1, 1), dtype=bool)
        )
        widths = np.arange(NUM_MOVES, dtype=float)[None, None, :]
        replay.add(first, np.ones((1, 1, NUM_MOVES), dtype=bool), widths, np.array([[2.0]]), np.array([turn in starts]))
        replay.pay(np.array([float(turn)]))
    return replay


def test_a_replayed_return_sums_the_rewards_that_followed():
    replay = replayed(6)
    batch = replay.sample(np.random.default_rng(0), 64, n=2, gamma=0.5)
    # From turn t: t + 0.5 (t + 1); turns 0 to 2 have two rewards and a state after them.
    assert set(batch.returns.tolist()) <= {0.5, 2.0, 3.5}
    assert (batch.moves == 2).all()
    assert batch.weight.all()


def test_a_return_never_crosses_the_start_of_an_episode():
    replay = replayed(8, starts=(0, 4))
    batch = replay.sample(np.random.default_rng(0), 256, n=2, gamma=0.5)
    turns = (batch.returns - 0.5) / 1.5
    np.testing.assert_array_equal(batch.weight > 0, ~np.isin(turns.round(), [2, 3]))


def test_a_replay_that_is_saved_and_loaded_gives_the_same_samples():
    replay = replayed(8)
    copy = Replay(64, 1, 1, NUM_MOVES)
    copy.fill(replay.arrays(64), replay.num_added)
    one, other = (r.sample(np.random.default_rng(0), 32, n=2, gamma=0.5) for r in (replay, copy))
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.stages, other.stages)


def joints_of(rng, moves):
    """Random joint moves, of which about a fifth of the steps have made one, and random summaries."""
    joints = no_others(*moves.shape)
    together = rng.integers(0, 5, (*moves.shape, 5))
    together[..., 3] = np.where(rng.random((len(moves), 1)) < 0.2, moves, together[..., 3])
    return {
        "together": together,
        "next_together": rng.integers(0, 5, together.shape),
        "summary": rng.normal(size=joints["summary"].shape).astype(np.float32),
        "next_summary": rng.normal(size=joints["summary"].shape).astype(np.float32),
    }


def random_batch(rng, size=24, num_stages=4):
    is_stage = rng.random((size, num_stages)) < 0.7
    is_stage[:, 0] = True
    legal = rng.random((size, num_stages, NUM_MOVES)) < 0.6
    legal[..., 0] = True
    moves = np.where(legal, rng.random(legal.shape), -1.0).argmax(-1)
    next_legal = rng.random(legal.shape) < 0.6
    next_legal[..., 0] = True
    return Batch(
        stages=(rng.normal(size=(size, num_stages, STAGES)) * is_stage[..., None]).astype(np.float32),
        whole=rng.normal(size=(size, WHOLE)).astype(np.float32),
        is_stage=is_stage,
        legal=legal,
        moves=moves,
        returns=rng.normal(size=size).astype(np.float32),
        discount=np.full(size, 0.216, dtype=np.float32),
        next_stages=rng.normal(size=(size, num_stages, STAGES)).astype(np.float32),
        next_whole=rng.normal(size=(size, WHOLE)).astype(np.float32),
        next_legal=next_legal,
        weight=(rng.random(size) < 0.8).astype(np.float32),
        **no_others(size, num_stages) | joints_of(rng, moves),
    )


@pytest.mark.parametrize("seed", range(3))
def test_learning_live_without_torch_takes_torchs_steps(seed):
    rng = np.random.default_rng(seed)
    weights = initial_weights(NUM_MOVES, rng)
    for name in (
        "advantage2.weight",
        "value2.weight",
        "joint3.weight",
    ):  # they start small, and hide errors of the layers below
        weights[name] *= 20.0
    with_torch = Learner(weights, lr=1e-3, polyak_rate=0.05, frozen=("summary", "joint"))
    live = LiveLearner(weights, lr=1e-3, polyak_rate=0.05)
    for _ in range(5):
        batch = random_batch(rng)
        assert live.step(batch) == pytest.approx(with_torch.step(batch), rel=1e-4)
    ours = live.weights()
    for name, array in with_torch.weights().items():
        np.testing.assert_allclose(ours[name], array, atol=2e-4, err_msg=name)


def test_live_learning_follows_what_is_paid():
    rng = np.random.default_rng(5)
    live = LiveLearner(initial_weights(NUM_MOVES, rng), lr=3e-3, polyak_rate=0.0)
    batch = random_batch(rng)
    errors = [live.step(batch) for _ in range(150)]
    assert errors[-1] < 0.3 * errors[0]
