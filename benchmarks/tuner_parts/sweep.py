"""The best static widths of a live pipeline, found by trying, and how two settings compare pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.tuner_parts.pipelines import LivePipeline

Widths = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The best static widths of a pipeline, and what every tried setting gave."""

    best: Widths
    rates: dict[Widths, float]


def effort(quick: bool) -> dict[str, int]:
    """How hard `sweep` tries."""
    if quick:
        return {"rounds": 1, "most": 5, "climbs": 0, "leaders": 2}
    return {"rounds": 5, "most": 1000, "climbs": 4, "leaders": 5}


def sweep(pipeline: LivePipeline, seconds: float, *, rounds: int, most: int, climbs: int, leaders: int) -> Swept:
    """The best static widths: the kind's grid (about `most` settings of it), then the neighbours of the best so far.

    A grid's edge is no limit: the climb goes on while a neighbour is better. Settings whose full buffers exceed the
    kind's memory do not count. The `leaders` best are tried again in turn, and the median of `rounds` decides.
    """
    rates: dict[Widths, float] = {}
    grid = list(product(*pipeline.kind.sweep))
    for widths in grid[:: -(-len(grid) // most)]:
        _try(pipeline, widths, rates, seconds)
    for _ in range(climbs):
        best = max(rates, key=lambda w: rates[w])
        for widths in _neighbours(pipeline, best):
            _try(pipeline, widths, rates, seconds)
        if max(rates, key=lambda w: rates[w]) == best:
            break
    first = sorted(rates, key=lambda w: -rates[w])[:leaders]
    tried: dict[Widths, list[float]] = {widths: [] for widths in first}
    for _ in range(rounds):
        for widths in first:
            pipeline.set_widths(widths)
            tried[widths].append(pipeline.rate(seconds))
    best = max(first, key=lambda w: float(np.median(tried[w])))
    return Swept(best=best, rates=rates)


def _try(pipeline: LivePipeline, widths: Widths, rates: dict[Widths, float], seconds: float) -> None:
    if widths in rates:
        return
    pipeline.set_widths(widths)
    rate = pipeline.rate(seconds)
    if pipeline.full_bytes() <= (pipeline.kind.memory_bytes or float("inf")):
        rates[widths] = rate


def _neighbours(pipeline: LivePipeline, widths: Widths) -> list[Widths]:
    """One stage one worker narrower or wider, or half as wide again."""
    found: list[Widths] = []
    for at, knob in enumerate(pipeline.knobs):
        tried = (widths[at] - 1, widths[at] + 1, -(-3 * widths[at] // 2))
        inside = [width for width in tried if max(1, knob.bounds.low) <= width <= knob.bounds.high]
        found += [(*widths[:at], width, *widths[at + 1 :]) for width in inside]
    return found


def standing(pipeline: LivePipeline, widths: Sequence[int], slices: int, seconds: float) -> list[float]:
    """Rates at `widths`, so many times `seconds` long."""
    pipeline.set_widths(widths)
    return [pipeline.rate(seconds) for _ in range(slices)]


def paired(
    pipeline: LivePipeline, ours: Sequence[int], theirs: Sequence[int], pairs: int, seconds: float
) -> tuple[list[float], list[float]]:
    """(rate at `ours` over rate at `theirs`, rate at `theirs`), pair by pair, in alternating order, as it runs."""
    found: list[float] = []
    others: list[float] = []
    for pair in range(pairs):
        rates = {}
        for side in ((0, 1), (1, 0))[pair % 2]:
            pipeline.set_widths((ours, theirs)[side])
            rates[side] = pipeline.rate(seconds)
        found.append(rates[0] / rates[1])
        others.append(rates[1])
    return found, others
