"""An engine's best setting: every shape over the widths, less those that a measured neighbour rules out."""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.peers_parts.engines import Engine

_HOPELESS = 0.5
_WORSE, _BETTER = 0.8, 1.15
_WIDEST = 32


def sweep(engine: Engine, rate: Callable[[str], float | None], *, to_beat: float = 0.0) -> dict[str, float]:
    """The rate of every setting that was tried and ran.

    Widths come as the engine lists them (2, 4, 8, 1). A shape that reaches less than half of the engine's best rate, or
    of `to_beat`, at its first width is left: no other width makes up for that. Wider ones are left once one reaches
    less than 0.8 of the shape's best, and 1 where 4 is clearly better than 2; and where the widest is the best, twice
    that is tried too.

    >>> from benchmarks.peers_parts.engines import PEERS
    >>> rates = {"workers=1": 10.0, "workers=2": 19.0, "workers=4": 12.0, "workers=8": 30.0}
    >>> sweep(PEERS[0], rates.get)
    {'workers=2': 19.0, 'workers=4': 12.0, 'workers=1': 10.0}
    """
    rates: dict[str, float] = {}

    def tried(setting: str) -> float:
        found = rate(setting)
        if found is not None:
            rates[setting] = found
        return found or 0.0

    for setting in engine.fixed:
        tried(setting)
    for shape in engine.shapes:
        by_width: dict[int, float] = {}
        for width in engine.widths:
            best = max(by_width.values(), default=0.0)
            if width > 2 and by_width[max(by_width)] < _WORSE * best:
                continue
            if width == 1 and by_width.get(4, 0.0) > _BETTER * by_width.get(2, math.inf):
                continue
            by_width[width] = tried(f"{shape}={width}")
            if len(by_width) == 1 and by_width[width] < _HOPELESS * max(to_beat, *rates.values(), 0.0):
                break
        widest = max(by_width)
        while len(by_width) > 1 and widest < _WIDEST and by_width[widest] >= max(by_width.values()) > 0.0:
            widest *= 2
            by_width[widest] = tried(f"{shape}={widest}")
    return rates
