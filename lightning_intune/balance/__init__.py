"""Batches of equal cost on every rank, after FreeScale (arXiv 2604.24073; DESIGN, section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_intune.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_intune.balance.batcher import BalancedBatcher as BalancedBatcher
    from lightning_intune.balance.bubble import BubbleStats as BubbleStats
    from lightning_intune.balance.cost import CostModel as CostModel
    from lightning_intune.balance.division import partition as partition
    from lightning_intune.balance.division import partition_by_cost as partition_by_cost
    from lightning_intune.balance.division import rebalance as rebalance
    from lightning_intune.balance.exchange import BalancedExchange as BalancedExchange
    from lightning_intune.balance.loss import mean_loss as mean_loss
    from lightning_intune.balance.settings import Balance as Balance
    from lightning_intune.balance.share import RankBatch as RankBatch
    from lightning_intune.balance.share import loss_scale as loss_scale

__getattr__, __all__ = lazy_names(
    __name__,
    {
        "Balance": "lightning_intune.balance.settings",
        "BalancedBatcher": "lightning_intune.balance.batcher",
        "BalancedExchange": "lightning_intune.balance.exchange",
        "BubbleStats": "lightning_intune.balance.bubble",
        "CostModel": "lightning_intune.balance.cost",
        "RankBatch": "lightning_intune.balance.share",
        "loss_scale": "lightning_intune.balance.share",
        "mean_loss": "lightning_intune.balance.loss",
        "partition": "lightning_intune.balance.division",
        "partition_by_cost": "lightning_intune.balance.division",
        "rebalance": "lightning_intune.balance.division",
    },
)
