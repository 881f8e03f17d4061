"""Stages of `method="auto"`, live: one that is faster in processes, and one whose items cost more to carry over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.tuner_parts import work
from lightning_intune.control import Budget, Decision, Tuner, make_agent
from lightning_intune.flow import ElasticLoader, ElasticMapper, IterableSource

_LAST_TURNS = 5
"""Whose median rate stands for a place: the last ones there."""


def lane_moves(quick: bool) -> dict[str, Any]:
    """By pipeline: the moves made, batches/s in threads before and at the end, and whether order and items were kept.

    `light_items` cross to processes for nothing. `heavy_items` are lists of numbers that take longer to pickle than to
    work on: a move is a loss there, and has to be taken back.
    """
    seconds, turn_s = (3.0, 0.2) if quick else (15.0, 0.5)
    light, heavy = work.python(8), work.python(4)
    return {
        "light_items": _moved(lambda place: Item(place, ()), light, seconds, turn_s),
        "heavy_items": _moved(lambda place: Item(place, range(10**6, 10**6 + 120_000)), heavy, seconds, turn_s),
    }


class Item:
    """One sample: its place and some numbers, all of them objects of their own."""

    def __init__(self, place: int, numbers: Iterable[int]) -> None:
        self.place, self.numbers = place, list(numbers)


def _moved(
    make: Callable[[int], Any],
    work_on: Callable[[Any], Any],
    seconds: float,
    turn_s: float,
) -> dict[str, Any]:
    root = ElasticMapper(IterableSource(range(10**9)), make, num_workers=1, name="read")
    root = ElasticMapper(root, work_on, num_workers=1, method="auto", name="parse")
    decisions: list[Decision] = []
    in_order = True
    with ElasticLoader(root) as loader:
        tuner = Tuner(agent=make_agent("dqn"), knobs=loader.knobs, budget=Budget(), turn_interval_s=turn_s)
        began, place = time.perf_counter(), 0
        for item in loader:
            in_order &= item.place == place
            place += 1
            decision = tuner.step(loader.stats)
            if decision is not None:
                decisions.append(decision)
            if time.perf_counter() - began > seconds:
                break
    moves = [(decision.turn, decision.lanes["parse"]) for decision in decisions if decision.lanes]
    before = _rate(decisions[: moves[0][0] + 1] if moves else decisions)
    after = _rate(decisions)
    return {
        "moves": moves,
        "threads_per_s": before,
        "end_per_s": after,
        "end_over_threads": after / before,
        "turns": len(decisions),
        "items": place,
        "in_order": in_order,
        "trace": [
            {"turn_s": round(d.turn_s, 2), "widths": d.widths, "per_s": round(d.samples_per_s, 1), "why": d.why,
             "lanes": d.lanes, "wait": round(d.wait_share, 2), "cpu": round(d.cpu_used, 2)}
            for d in decisions
        ],
    }  # fmt: skip


def _rate(decisions: list[Decision]) -> float:
    return float(np.median([decision.samples_per_s for decision in decisions[-_LAST_TURNS:]])) if decisions else 0.0
