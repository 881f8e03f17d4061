"""What joint moves are worth beside the proposal, told by the simulator for each of them from the same state.

A turn's noise (2-15 % of the rate) drowns the percents between a lean and a rich proposal, and returns add the
noise of what follows. The simulator can play every joint move from one state, without noise.
This is supervised learning, not Q-learning; the departures of single stages are learnt by that (`learner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from lightning_intune.control.action import HOLD, NUM_JOINT, PROPOSAL, MoveSet
from lightning_intune.control.agent import Agent, Policy
from lightning_intune.control.baselines import Model
from lightning_intune.control.fleet import Fleet
from lightning_intune.control.observation import observe
from lightning_intune.control.q_policy import MARGIN, QPolicy
from lightning_intune.control.qnet import QNet, Single, Weights, summary, usual_move
from lightning_intune.control.reward import REWARD_SCALE
from lightning_intune.control.worlds import TRAINING


@final
@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """How much is compared, and how it is learnt."""

    num_pipelines: int = 3000
    num_fleets: int = 4
    """Played by the model alone."""
    num_own_fleets: int = 3
    """Played by what was learnt of those: it gets to other states. Idea: Ross et al. (2011), arXiv 1011.0686.

    Single stages' departures are not learnt yet then, and act as exploration.
    """
    num_turns: int = 20
    num_updates: int = 9000
    batch_size: int = 1024
    lr: float = 1e-3
    decay: float = 0.01
    most_gain: float = 0.08
    """Share of the rate beyond which a difference counts no more: it is plain by then."""


@final
@dataclass(frozen=True, kw_only=True)
class Compared:
    """K states: their summaries [K, F] and the gains of the joint moves over the usual one [K, NUM_JOINT]."""

    summaries: Single
    gains: Single

    def with_more(self, other: Compared) -> Compared:
        """These and `other`'s."""
        return Compared(
            summaries=np.concatenate([self.summaries, other.summaries]), gains=np.concatenate([self.gains, other.gains])
        )


def learn_by_comparison(
    weights: Weights, settings: ComparisonSettings, rng: np.random.Generator, *, plain: bool
) -> Weights:
    """`weights` with joint layers learnt in two rounds: where the model alone gets to, then also where they do."""
    usual = usual_move(len(MoveSet(plain=plain).names))
    seen = compare(settings, rng, plain=plain, num_fleets=settings.num_fleets)
    first = learn_joint(weights, seen, settings, rng, usual=usual)
    if settings.num_own_fleets == 0:
        return first

    def own() -> Policy:
        return QPolicy(QNet(first), plain=plain, margin=0.0 if plain else MARGIN)

    seen = seen.with_more(compare(settings, rng, plain=plain, num_fleets=settings.num_own_fleets, policy=own))
    return learn_joint(weights, seen, settings, rng, usual=usual)


def compare(
    settings: ComparisonSettings, rng: np.random.Generator, *, plain: bool, num_fleets: int,
    policy: Callable[[], Policy] = Model,
) -> Compared:  # fmt: skip
    """Play `policy` on `num_fleets` of fresh pipelines, and every joint move beside it; fresh turns are left out."""
    found: list[tuple[Single, Single]] = []
    for _ in range(num_fleets):
        fleet, agent, moves = (
            Fleet.draw(settings.num_pipelines, TRAINING, rng),
            Agent(policy(), rng=rng),
            MoveSet(plain=plain),
        )
        for _ in range(settings.num_turns):
            choice = agent.decide(fleet.read())
            widths = moves.widths(choice.situation)
            fleet.step(choice.widths)
            rates = np.stack([fleet.rate_of(widths[..., move]) for move in range(NUM_JOINT)], axis=-1)
            usual = rates[:, [HOLD if plain else PROPOSAL]]
            gains = REWARD_SCALE * np.clip(
                (rates - usual) / fleet.best_rate[:, None], -settings.most_gain, settings.most_gain
            )
            rows = choice.situation.reading.is_valid if plain else ~choice.situation.is_fresh
            seen = summary(observe(choice.situation, plain=plain))
            found.append((seen[rows], gains[rows].astype(np.float32)))
    return Compared(
        summaries=np.concatenate([seen for seen, _ in found]), gains=np.concatenate([gains for _, gains in found])
    )


def learn_joint(
    weights: Weights, compared: Compared, settings: ComparisonSettings, rng: np.random.Generator, *, usual: int,
    on_update: Callable[[int], None] = lambda _: None,
) -> Weights:  # fmt: skip
    """`weights` with joint layers that foretell `compared.gains`: Huber loss, AdamW, in torch."""
    import torch

    names = [name for name in weights if name.startswith("joint")]
    shift = compared.summaries.mean(0)
    scale = compared.summaries.std(0) + np.float32(1e-3)
    given = torch.tensor(((compared.summaries - shift) / scale).clip(-4.0, 4.0))
    gains = torch.tensor(compared.gains)
    values = {name: torch.tensor(weights[name]).requires_grad_() for name in names}
    optimizer = torch.optim.AdamW(list(values.values()), lr=settings.lr, weight_decay=settings.decay)
    for update in range(settings.num_updates):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1.0 - 0.95 * update / settings.num_updates)
        rows = torch.tensor(rng.integers(0, len(given), settings.batch_size))
        hidden = torch.relu(given[rows] @ values["joint1.weight"] + values["joint1.bias"])
        hidden = torch.relu(hidden @ values["joint2.weight"] + values["joint2.bias"])
        joint = hidden @ values["joint3.weight"] + values["joint3.bias"]
        loss = torch.nn.functional.huber_loss(joint - joint[:, usual, None], gains[rows], delta=0.3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()
        on_update(update + 1)
    learnt = {name: value.detach().numpy().copy() for name, value in values.items()}
    return weights | learnt | {"summary.shift": shift, "summary.scale": scale}
