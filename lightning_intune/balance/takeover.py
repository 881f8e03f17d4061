"""A state that was saved on another number of ranks: which samples are still to come, and who reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from lightning_intune.balance.channel import Channel
from lightning_intune.balance.cost import CostModel
from lightning_intune.balance.lengths import Lengths
from lightning_intune.balance.plan import Ints, steps_in_order, steps_of_held
from lightning_intune.balance.reader import Block, Part, ShardReader, without
from lightning_intune.balance.rules import Rules
from lightning_intune.flow.node import BaseNode, State

T = TypeVar("T")


def take_over(
    state: State, make: Callable[[int, int], BaseNode[T]], rules: Rules, cost: CostModel, channel: Channel
) -> list[Part]:
    """The parts that this rank reads: those of the saved ranks rank, rank + W, ..., less what was delivered.

    The round that was under way is read and planned again as it was on the saved ranks, to know what of it was
    delivered; in mode `reservoir` that takes one collective.
    """
    mine = range(channel.rank, len(state["ranks"]), channel.world_size)
    if state["skip"] == 0:
        return [part for rank in mine for part in state["ranks"][rank]]
    size = state["size"] * rules.batch_size
    blocks = {rank: _read(ShardReader(make, state["ranks"][rank]), size) for rank in mine}
    steps = _steps(blocks, state, rules, cost, channel)
    parts: list[Part] = []
    for rank, block in blocks.items():
        out = (steps[rank] < state["skip"]).tolist()
        delivered = [place for place, is_out in zip(block.places, out, strict=True) if is_out]
        parts += without(block.parts, delivered)
    return parts


def _read(reader: ShardReader[Any], size: int) -> Block[Any]:
    block = reader.read(size, threading.Event())
    if block.error is not None:
        raise block.error
    return block


def _steps(
    blocks: dict[int, Block[Any]], state: State, rules: Rules, cost: CostModel, channel: Channel
) -> dict[int, Ints]:
    """By saved rank, the step of every sample of its block."""
    if rules.mode in ("off", "global"):
        return {rank: steps_in_order(len(block.samples), rules.batch_size) for rank, block in blocks.items()}
    costs = {rank: Lengths.of(block.samples, rules.length).costs(cost) for rank, block in blocks.items()}
    if rules.mode == "local":
        return {rank: rules.steps_held(part) for rank, part in costs.items()}
    told: list[dict[int, Any]] = channel.gather(costs) if channel.world_size > 1 else [costs]
    by_rank = {rank: np.asarray(part) for costs_told in told for rank, part in costs_told.items()}
    ordered = [by_rank[rank] for rank in sorted(by_rank)]
    return dict(enumerate(steps_of_held(ordered, rules.steps_held, state["offered"])))
