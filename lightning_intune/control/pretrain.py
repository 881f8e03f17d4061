"""Makes the shipped weights on simulated pipelines, from one seed, in minutes on one core.

Joint moves are learnt by comparison (`comparison`, supervised), single stages' departures and values by double DQN.

python -m lightning_intune.control.pretrain --seed 0 --out lightning_intune/control/weights
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np

from lightning_intune.control.action import NUM_JOINT, PROPOSAL, MoveSet
from lightning_intune.control.agent import Agent, Choice
from lightning_intune.control.arrays import Bools, Floats, Ints
from lightning_intune.control.comparison import ComparisonSettings, learn_by_comparison
from lightning_intune.control.contest import run_contest
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.guard import GuardSettings
from lightning_intune.control.knowledge import Situation
from lightning_intune.control.observation import Observation
from lightning_intune.control.q_policy import MARGIN, QPolicy
from lightning_intune.control.qnet import QNet, Weights, initial_weights
from lightning_intune.control.replay import Replay
from lightning_intune.control.reward import REWARD_SCALE, RewardSettings, moved_share, reward
from lightning_intune.control.weight_file import save_weights
from lightning_intune.control.worlds import FULL, FULL_CROWDED, TRAINING
from lightning_intune.errors import ConfigError
from lightning_intune.mistakes import CommandParser, add_output, whole_number

VALIDATION_SEED = 77_000
"""Pipelines on which the best of a training's checkpoints is picked; no figure is reported on them."""

PLAIN_EXPLORE = 0.35
"""As `TrainSettings.explore`, for the network without a model, which has to find out for itself where to go."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run. `num_turns` environment turns of `num_pipelines` pipelines each."""

    seed: int = 0
    plain: bool = False
    num_pipelines: int = 256
    num_turns: int = 600
    episode_turns: int = 20
    updates_per_turn: int = 2
    batch_size: int = 512
    gamma: float = 0.6
    num_steps: int = 3
    lr: float = 1e-3
    move_cost: float = 0.002
    """A fifth of the live one: what a move costs while it settles is little beside where it leads."""
    num_others: int = 2
    """Joint moves per turn whose gain the simulator is asked for beside the one made."""
    other_weight: float = 1.5
    """A move's gain lasts: what one turn shows counts for about that many."""
    comparison: ComparisonSettings = field(default_factory=ComparisonSettings)
    explore: float = 0.15
    """Chance of a random move of the most exploring pipeline; the least exploring one has almost none."""
    validate_every: int = 200
    num_validation: int = 768


@final
class Collector:
    """Fills the replay with what the policy really did."""

    def __init__(self, replay: Replay, fleet: Fleet) -> None:
        self._replay, self._fleet = replay, fleet

    def follow(self, seen: Observation, legal: Bools, moves: Floats, asked: Floats, situation: Situation) -> None:
        del situation
        self._replay.add(seen, legal, moves, asked, self._fleet.turn == 0)


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of learning after some turns: validation regret in percent and the mean error."""

    turn: int
    regret_pct: float
    regret_p95_pct: float
    error: float
    seconds: float


def pretrain(
    settings: TrainSettings,
    on_checkpoint: Callable[[Checkpoint], None] = lambda _: None,
    on_turn: Callable[[int], None] = lambda _: None,
) -> tuple[Weights, list[Checkpoint]]:
    """(weights of the best checkpoint on the validation pipelines, all checkpoints)."""
    import torch

    from lightning_intune.control.learner import Learner

    torch.set_num_threads(1)
    rng = np.random.default_rng([settings.seed, int(settings.plain)])
    moves = MoveSet(plain=settings.plain)
    weights = initial_weights(len(moves.names), rng)
    weights = learn_by_comparison(weights, settings.comparison, rng, plain=settings.plain)
    # The plain network meets other states than these, and goes on comparing joint moves where it gets to.
    learner = Learner(weights, lr=settings.lr, frozen=("summary",) if settings.plain else ("summary", "joint"))
    fleet = Fleet.draw(settings.num_pipelines, TRAINING, rng)
    # Staggered starts: every batch then holds all phases of an episode.
    fleet.turn = rng.integers(0, settings.episode_turns, settings.num_pipelines).astype(np.float64)
    replay = Replay(
        300, settings.num_pipelines, fleet.world.num_stages, len(moves.names), NUM_JOINT + settings.num_others
    )
    policy = QPolicy(QNet(weights), plain=settings.plain, follower=Collector(replay, fleet))
    policy.explore = settings.explore ** (1.0 + 5.0 * rng.random(settings.num_pipelines))
    agent = Agent(policy, rng=rng, guard=GuardSettings())
    checkpoints: list[Checkpoint] = []
    best, best_score, errors, started = weights, np.inf, [0.0], time.monotonic()
    for turn in range(1, settings.num_turns + 1):
        _play(fleet, agent, policy, replay, settings, rng)
        learner.set_lr(settings.lr * (1.0 - 0.95 * turn / settings.num_turns))
        for _ in range(settings.updates_per_turn if turn > 20 else 0):
            batch = replay.sample(rng, settings.batch_size, n=settings.num_steps, gamma=settings.gamma)
            if batch is not None:
                errors.append(learner.step(batch))
        policy.net = QNet(learner.weights())
        on_turn(turn)
        if turn % settings.validate_every == 0:
            mean, p95 = validate(learner.weights(), settings)
            recent = float(np.mean(errors[-200:]))
            seconds = time.monotonic() - started
            checkpoints.append(
                Checkpoint(turn=turn, regret_pct=mean, regret_p95_pct=p95, error=recent, seconds=seconds)
            )
            on_checkpoint(checkpoints[-1])
            if _score(checkpoints[-1]) < best_score:
                best, best_score = learner.weights(), _score(checkpoints[-1])
    return best, checkpoints


def _score(checkpoint: Checkpoint) -> float:
    """What the best checkpoint has least of."""
    return checkpoint.regret_pct + 0.2 * checkpoint.regret_p95_pct


def validate(weights: Weights, settings: TrainSettings) -> tuple[float, float]:
    """(mean, 95th percentile) of the regret in percent on the validation pipelines."""
    policy = QPolicy(QNet(weights), plain=settings.plain, margin=MARGIN)
    agent = Agent(policy, rng=np.random.default_rng(0))
    regret = np.concatenate(
        [
            run_contest(agent, ranges, num=settings.num_validation // 2, turns=20, seed=VALIDATION_SEED + at).regret
            for at, ranges in enumerate((FULL, FULL_CROWDED))
        ]
    )
    return 100.0 * float(regret.mean()), 100.0 * float(np.percentile(regret, 95))


def _play(
    fleet: Fleet, agent: Agent, policy: QPolicy, replay: Replay, settings: TrainSettings, rng: np.random.Generator
) -> None:
    ended = fleet.turn >= settings.episode_turns
    fleet.restart(ended)
    agent.restart(ended)
    before = fleet.widths
    choice = agent.decide(fleet.read())
    others = _other_moves(policy, choice, settings.num_others, rng)
    paid, memory = RewardSettings(move_cost=settings.move_cost), np.zeros(settings.num_pipelines)

    def worth(rates: Floats, widths: Floats) -> Floats:
        return REWARD_SCALE * reward(rates, best_rate, memory, moved_share(before, widths), paid)

    fleet.step(choice.widths)
    best_rate = fleet.best_rate
    mine = worth(fleet.rate, fleet.widths)
    # The model's own outcome from here does not depend on the move: subtracting it only removes noise.
    model = 0.0 if settings.plain else REWARD_SCALE * fleet.rate_of(choice.situation.proposal.widths) / best_rate
    # In fresh turns the proposal is made whatever the network says: there is nothing to learn, and all is loud.
    replay.pay(mine - model, None if settings.plain else ~choice.situation.is_fresh)
    if others:
        gains = [settings.other_weight * (worth(fleet.rate_of(widths), widths) - mine) for _, widths in others]
        replay.compare(np.stack([moves for moves, _ in others]), np.clip(np.stack(gains), -5.0, 5.0))


def _other_moves(policy: QPolicy, choice: Choice, num: int, rng: np.random.Generator) -> list[tuple[Ints, Floats]]:
    # All joint moves, and `num` times the made or the proposed ones with one stage's replaced.
    widths = policy.moves.widths(choice.situation)
    legal = policy.moves.legal(choice.situation, widths)
    together = policy.moves.together(widths)
    made, _ = policy.moves.index_of(widths, choice.widths)
    count = choice.situation.reading.is_stage.sum(1)
    tried = [together[..., at] for at in range(together.shape[-1])]
    for at in range(num):
        stage = (rng.random(len(count)) * count).astype(np.int64)
        random = np.where(legal, rng.random(legal.shape), -1.0).argmax(-1)
        base = made if at % 2 else together[..., 0 if policy.plain else PROPOSAL]
        tried.append(np.where(np.arange(made.shape[1])[None, :] == stage[:, None], random, base))
    return [(moves, np.take_along_axis(widths, moves[..., None], -1)[..., 0]) for moves in tried]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    name = options.name or f"{'plain' if options.plain else 'dqn'}-{options.seed}"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{name}.json").touch()  # minutes of learning would be lost to a folder that takes no file
    except OSError as error:
        raise ConfigError(f"pretrain: --out {options.out}: {error.strerror}. Name a folder to write to.") from error
    settings = replace(TrainSettings(), seed=options.seed, plain=options.plain, num_turns=options.turns)
    if options.plain:
        settings = replace(settings, explore=PLAIN_EXPLORE)
    settings = replace(settings, validate_every=min(settings.validate_every, options.turns))
    weights, checkpoints = _shown(settings, is_silent=options.json or options.quiet)
    best = min(checkpoints, key=_score)
    about = {"settings": json.dumps(asdict(settings)), "validation": json.dumps(asdict(best))}
    save_weights(options.out / f"{name}.safetensors", weights, about)
    report = {"settings": asdict(settings), "checkpoints": [asdict(c) for c in checkpoints]}
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    written = str(options.out / f"{name}.safetensors")
    if options.json:
        sys.stdout.write(json.dumps({"weights": written, "best": asdict(best), **report}) + "\n")
    else:
        sys.stdout.write(
            f"'{written}' written, its report beside it: regret {best.regret_pct:.2f} % mean, "
            f"{best.regret_p95_pct:.2f} % p95 after {best.turn} turns\n"
        )
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-intune pretrain", description="Remake the tuner's weights from a seed.")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="another seed, other weights (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--name", default=None, help="file name without suffix; default: dqn-SEED or plain-SEED")
    parser.add_argument("--plain", action="store_true", help="train the rival without the model")
    turns = TrainSettings().num_turns
    parser.add_argument("--turns", type=whole_number(1), default=turns, help="turns to learn in (default: %(default)s)")
    add_output(parser)
    return parser


def _shown(settings: TrainSettings, *, is_silent: bool) -> tuple[Weights, list[Checkpoint]]:
    """`pretrain` behind a bar on stderr, each checkpoint a line above it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=is_silent) as progress:
        task = progress.add_task("pretraining", total=settings.num_turns)

        def show(checkpoint: Checkpoint) -> None:
            if not is_silent:
                console.print(
                    f"turn {checkpoint.turn}: regret {checkpoint.regret_pct:.2f} % mean, "
                    f"{checkpoint.regret_p95_pct:.2f} % p95, error {checkpoint.error:.4f}, {checkpoint.seconds:.0f} s"
                )

        return pretrain(settings, show, lambda turn: progress.update(task, completed=turn))


if __name__ == "__main__":
    raise SystemExit(main())
