"""Learning the Q-network with torch: double DQN over joint moves. Imported only where something is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, final

import torch

from lightning_intune.control.learning import double_q_target, polyak
from lightning_intune.control.qnet import HIDDEN, Weights, usual_move
from lightning_intune.control.steps import Batch

Tensor: TypeAlias = torch.Tensor

_COMPARISON = 3.0
"""Weight of what the simulator says of moves not made, beside what the made ones brought."""


@final
class Learner:
    """Online and target network, Adam, Huber loss on the n-step double-Q error. One thread's."""

    def __init__(
        self, weights: Weights, *, lr: float = 1e-3, polyak_rate: float = 0.01, frozen: tuple[str, ...] = ("summary",)
    ) -> None:
        self.online = {
            name: torch.tensor(array).requires_grad_(not name.startswith(frozen)) for name, array in weights.items()
        }
        self.target = {name: torch.tensor(array) for name, array in weights.items()}
        self.optimizer = torch.optim.Adam([value for value in self.online.values() if value.requires_grad], lr=lr)
        self._polyak_rate = polyak_rate

    def step(self, batch: Batch) -> float:
        """One gradient step; the mean absolute error before it."""
        mask, moves = torch.as_tensor(batch.is_stage), torch.as_tensor(batch.moves)
        values = joint_values(
            self.online,
            torch.as_tensor(batch.stages),
            torch.as_tensor(batch.whole),
            mask,
            torch.as_tensor(batch.legal),
            torch.as_tensor(batch.summary),
            torch.as_tensor(batch.together),
        )
        # Joint moves are valued by comparison alone: their differences are small beside the returns' noise.
        error = values.value + values.gain(moves, with_joint=False) - self._targets(batch, mask)
        weight = torch.as_tensor(batch.weight)
        total = weight.sum().clamp(min=1.0)
        loss = (_huber(error) * weight).sum() + _COMPARISON * self._comparison(batch, values)
        self.optimizer.zero_grad(set_to_none=True)
        (loss / total).backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(list(self.online.values()), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.target.items():
                value.copy_(polyak(value, self.online[name].detach(), self._polyak_rate))
            return float((error.abs() * weight).sum() / total)

    def _comparison(self, batch: Batch, values: JointValues) -> Tensor:
        # Other joint moves must be worth as much more or less than the made one as the simulator says. Noise and
        # later turns are the same for both, so this teaches what single rewards hide.
        num_others = batch.other_moves.shape[1]
        if num_others == 0:
            return values.value.sum() * 0.0
        others = torch.as_tensor(batch.other_moves)
        made = values.gain(torch.as_tensor(batch.moves))
        gains = torch.stack([values.gain(others[:, at]) - made for at in range(num_others)], dim=1)
        usable = torch.as_tensor(batch.weight)[:, None]
        return (_huber(gains - torch.as_tensor(batch.other_gains), 0.5) * usable).sum() / num_others

    @torch.no_grad()
    def _targets(self, batch: Batch, mask: Tensor) -> Tensor:
        stages, whole = torch.as_tensor(batch.next_stages), torch.as_tensor(batch.next_whole)
        legal, together = torch.as_tensor(batch.next_legal), torch.as_tensor(batch.next_together)
        summary = torch.as_tensor(batch.next_summary)
        best = joint_values(self.online, stages, whole, mask, legal, summary, together).best()
        later = joint_values(self.target, stages, whole, mask, legal, summary, together)
        value = later.value + later.gain(best)
        return double_q_target(torch.as_tensor(batch.returns), torch.as_tensor(batch.discount), value)

    @torch.no_grad()
    def pull(self, home: Weights, share: float) -> None:
        """Move the online weights by `share` of the way towards `home`."""
        for name, value in self.online.items():
            value.add_(share * (torch.as_tensor(home[name]) - value))

    def set_lr(self, lr: float) -> None:
        """The learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def weights(self) -> Weights:
        """The online network as NumPy arrays."""
        return {name: value.detach().numpy().copy() for name, value in self.online.items()}


def _huber(error: Tensor, delta: float = 1.0) -> Tensor:
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


@final
@dataclass(frozen=True, kw_only=True)
class JointValues:
    """The parts of Q for K steps; as `QNet`, with gradients."""

    value: Tensor
    """[K]"""
    advantage: Tensor
    """[K, N, A] centred over legal moves."""
    joint: Tensor
    """[K, NUM_JOINT] gains of the joint moves."""
    mask: Tensor
    allowed: Tensor
    together: Tensor

    def gain(self, moves: Tensor, *, with_joint: bool = True) -> Tensor:
        """[K] what the joint `moves` [K, N] add to the state's value. `with_joint` False: no gradient for those."""
        usual = usual_move(self.advantage.shape[-1])
        joint = self.joint if with_joint else self.joint.detach()
        same = (self.together == moves[..., None]).all(1)
        made = self.advantage.gather(-1, moves[..., None])[..., 0]
        base = self.advantage.gather(-1, self.together[..., usual, None])[..., 0]
        mixed = joint[:, usual] + ((made - base) * self.mask).sum(1)
        return torch.where(same.any(1), joint.gather(1, same.int().argmax(1)[:, None])[:, 0], mixed)

    def best(self) -> Tensor:
        """[K, N] the best of the joint moves and of every stage's own best."""
        own = self.advantage.masked_fill(self.allowed == 0, -torch.inf).argmax(-1)
        tried = torch.cat([self.together, own[..., None]], dim=-1)
        gains = torch.stack([self.gain(tried[..., at]) for at in range(tried.shape[-1])], dim=1)
        return tried.gather(-1, gains.argmax(1)[:, None, None].expand(-1, tried.shape[1], 1))[..., 0]


def joint_values(
    w: dict[str, Tensor],
    stages: Tensor,
    whole: Tensor,
    mask: Tensor,
    legal: Tensor,
    summary: Tensor,
    together: Tensor,
) -> JointValues:
    """The network's pass."""
    num_stage_features = stages.shape[-1]
    first, head = w["encode1.weight"], w["advantage1.weight"]
    hidden = torch.relu(
        stages @ first[:num_stage_features] + (whole @ first[num_stage_features:])[:, None, :] + w["encode1.bias"]
    )
    real = mask[..., None].float()
    hidden = torch.relu(hidden @ w["encode2.weight"] + w["encode2.bias"]) * real
    pooled = torch.cat([hidden.sum(1) / real.sum(1).clamp(min=1.0), hidden.amax(1)], dim=-1)
    deep = torch.relu(hidden @ head[:HIDDEN] + (pooled @ head[HIDDEN:])[:, None, :] + w["advantage1.bias"])
    raw = deep @ w["advantage2.weight"] + w["advantage2.bias"]
    context = torch.cat([pooled, whole], dim=-1)
    state = torch.relu(context @ w["value1.weight"] + w["value1.bias"])
    given = ((summary - w["summary.shift"]) / w["summary.scale"]).clamp(-4.0, 4.0)
    joint = torch.relu(given @ w["joint1.weight"] + w["joint1.bias"])
    joint = torch.relu(joint @ w["joint2.weight"] + w["joint2.bias"])
    allowed = (legal & mask[..., None]).float()
    mean = (raw * allowed).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp(min=1.0)
    return JointValues(
        value=(state @ w["value2.weight"] + w["value2.bias"])[:, 0],
        advantage=raw - mean,
        joint=joint @ w["joint3.weight"] + w["joint3.bias"],
        mask=mask,
        allowed=allowed,
        together=together,
    )
