"""Learning the Q-network with torch: double DQN over joint moves. Imported only where something is learnt."""

from __future__ import annotations

from typing import TypeAlias, final

import torch

from lightning_intune.control.learning import double_q_target, polyak
from lightning_intune.control.qnet import HIDDEN, Weights
from lightning_intune.control.steps import Batch

Tensor: TypeAlias = torch.Tensor


@final
class Learner:
    """Online and target network, Adam, Huber loss on the n-step double-Q error. One thread's."""

    def __init__(self, weights: Weights, *, lr: float = 1e-3, polyak_rate: float = 0.01) -> None:
        self.online = {name: torch.tensor(array).requires_grad_() for name, array in weights.items()}
        self.target = {name: torch.tensor(array) for name, array in weights.items()}
        self.optimizer = torch.optim.Adam(list(self.online.values()), lr=lr)
        self._polyak_rate = polyak_rate

    def step(self, batch: Batch) -> float:
        """One gradient step; the mean absolute error before it."""
        stages, whole = torch.as_tensor(batch.stages), torch.as_tensor(batch.whole)
        mask = torch.as_tensor(batch.is_stage)
        moves = torch.as_tensor(batch.moves)
        q, advantages, _ = joint_q(self.online, stages, whole, mask, torch.as_tensor(batch.legal), moves)
        error = q - self._targets(batch, mask)
        weight = torch.as_tensor(batch.weight)
        total = weight.sum().clamp(min=1.0)
        loss = (_huber(error) * weight).sum() + self._comparison(batch, advantages, mask)
        self.optimizer.zero_grad(set_to_none=True)
        (loss / total).backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(list(self.online.values()), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.target.items():
                value.copy_(polyak(value, self.online[name].detach(), self._polyak_rate))
            return float((error.abs() * weight).sum() / total)

    def _comparison(self, batch: Batch, advantages: Tensor, mask: Tensor) -> Tensor:
        # Advantages of other joint moves must differ from the made one's as the simulator says they do. Noise and
        # later turns are the same for both, so this teaches what single rewards hide.
        if batch.other_moves.shape[1] == 0:
            return advantages.sum() * 0.0
        made = advantages.gather(-1, torch.as_tensor(batch.moves)[..., None])[..., 0]
        others = torch.as_tensor(batch.other_moves).transpose(1, 2)
        other = advantages.gather(-1, others)
        gain = ((other - made[..., None]) * mask[..., None]).sum(1)
        usable = torch.as_tensor(batch.weight)[:, None]
        return (_huber(gain - torch.as_tensor(batch.other_gains)) * usable).sum() / gain.shape[1]

    @torch.no_grad()
    def _targets(self, batch: Batch, mask: Tensor) -> Tensor:
        stages, whole = torch.as_tensor(batch.next_stages), torch.as_tensor(batch.next_whole)
        legal = torch.as_tensor(batch.next_legal)
        none = torch.zeros(mask.shape, dtype=torch.int64)
        _, _, best = joint_q(self.online, stages, whole, mask, legal, none)
        value, _, _ = joint_q(self.target, stages, whole, mask, legal, best)
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


def _huber(error: Tensor) -> Tensor:
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=1.0)


def joint_q(
    w: dict[str, Tensor], stages: Tensor, whole: Tensor, mask: Tensor, legal: Tensor, moves: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q of the joint `moves` [K], centred advantages [K, N, A], best moves [K, N]); as `QNet`, with gradients."""
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
    state = torch.relu(torch.cat([pooled, whole], dim=-1) @ w["value1.weight"] + w["value1.bias"])
    value = (state @ w["value2.weight"] + w["value2.bias"])[:, 0]
    allowed = (legal & mask[..., None]).float()
    mean = (raw * allowed).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True).clamp(min=1.0)
    advantage = raw - mean
    made = advantage.gather(-1, moves[..., None])[..., 0]
    best = advantage.masked_fill(allowed == 0, -torch.inf).argmax(-1)
    return value + (made * mask).sum(1), advantage, best
