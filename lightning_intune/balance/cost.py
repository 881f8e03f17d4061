"""What a sample costs: a function of its length, fitted to measured step times."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_intune.balance.division import check_costs
from lightning_intune.errors import ConfigError

Floats = NDArray[np.float64]
Function = Callable[[Floats], ArrayLike]

_HUBER = 1.345  # standard deviations; 95 % as good as least squares where there are no outliers (Huber 1964)
_REJECTED = 6.0  # standard deviations from which a measurement counts for nothing
_ROUNDS = 20


@final
class CostModel:
    """A sample of length L costs `linear * L + quadratic * L**2`, or what `function` says.

    Units are free until `observe` has told measured steps: from `min_steps` on the coefficients are seconds, and
    `fixed_s` the seconds of a step whatever is in it (they delay all ranks alike, and so play no part in plans). The
    fit is over the last `window` steps, every coefficient 0 or more; steps far off it (a garbage collection, another
    job) count less, and those beyond six standard deviations nothing. With a `function` its scale alone is fitted.
    `padded=True` is for models that pad: a batch then costs as if all its samples were as long as its longest, so
    B * max(L)**2 with `linear=0, quadratic=1`. With `learns=False` costs stay as given, whatever is observed.

    Not thread-safe. `state_dict` is small and holds the measured steps, so a resumed fit goes on as it would have.

    >>> CostModel(linear=1.0, quadratic=0.5)([2, 4])
    array([ 4., 12.])
    """

    def __init__(
        self,
        *,
        linear: float = 1.0,
        quadratic: float = 0.0,
        function: Function | None = None,
        padded: bool = False,
        window: int = 256,
        min_steps: int = 16,
        learns: bool = True,
    ) -> None:
        if not (np.isfinite([linear, quadratic]).all() and min(linear, quadratic) >= 0 and linear + quadratic > 0):
            raise ConfigError(
                f"CostModel: linear={linear}, quadratic={quadratic} are no costs. Both must be 0 or more, one above 0."
            )
        if not 4 <= min_steps <= window:
            raise ConfigError(
                f"CostModel: min_steps={min_steps}, window={window}: a fit needs 4 steps or more, out of the window. "
                "Set 4 <= min_steps <= window."
            )
        self.linear, self.quadratic, self.fixed_s = float(linear), float(quadratic), 0.0
        self.scale = 1.0
        """What `function` is multiplied by."""
        self.function, self.padded = function, padded
        self._min_steps, self._learns = min_steps, learns
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=window)  # two features and the seconds
        self._num_seen = 0

    def __call__(self, lengths: ArrayLike) -> Floats:
        """Each sample's cost, [N]. ValueError for a negative, infinite or NaN length, or cost of `function`."""
        values = check_costs(lengths)
        if self.function is not None:
            return self.scale * check_costs(self.function(values))
        return self.linear * values + self.quadratic * values * values

    def batch_cost(self, lengths: ArrayLike) -> float:
        """What a batch of these samples costs, without `fixed_s`; 0.0 for an empty one.

        >>> CostModel(linear=0.0, quadratic=1.0, padded=True).batch_cost([1, 3])
        18.0
        """
        costs = self(lengths)
        if len(costs) == 0:
            return 0.0
        return float(len(costs) * costs.max() if self.padded else costs.sum())

    def features(self, lengths: ArrayLike) -> tuple[float, float]:
        """What `observe` remembers of a batch: sums of L and L**2, as padded where the model pads."""
        values = check_costs(lengths)
        if len(values) and self.padded:
            values = np.full(len(values), values.max())
        if self.function is not None:
            return float(check_costs(self.function(values)).sum()), 0.0
        return float(values.sum()), float((values * values).sum())

    def observe(self, lengths: ArrayLike, step_s: float) -> None:
        """A rank computed a batch of these samples in `step_s`, waiting for other ranks not counted."""
        self.observe_features(self.features(lengths), step_s)

    def observe_features(self, features: tuple[float, float], step_s: float) -> None:
        """`observe`, for a batch of which another rank has told the `features`."""
        if not (self._learns and np.isfinite(step_s) and step_s > 0):
            return  # costs are to stay as they are, a clock that went back, or a step that was not measured
        self._steps.append((*features, step_s))
        self._num_seen += 1
        # Often at first, then as the window is renewed: a fit takes some hundred microseconds.
        if self._num_seen >= self._min_steps and self._num_seen % max(1, min(16, self._num_seen // 8)) == 0:
            self.fit()

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """(fixed_s, linear, quadratic, scale): what one rank tells the others, so that all plan alike."""
        return self.fixed_s, self.linear, self.quadratic, self.scale

    @coefficients.setter
    def coefficients(self, values: tuple[float, float, float, float]) -> None:
        self.fixed_s, self.linear, self.quadratic, self.scale = values

    def fit(self) -> None:
        """Fit the remembered steps now; where they tell nothing apart the coefficients stay."""
        if len(self._steps) < 2:
            return
        steps = np.array(self._steps)
        columns = (
            [np.ones(len(steps)), steps[:, 0]] if self.function is not None else [np.ones(len(steps)), *steps.T[:2]]
        )
        found = _robust_fit(np.stack(columns, axis=1), steps[:, 2])
        if found is None or found[1:].sum() <= 0:
            return
        self.fixed_s = float(found[0])
        if self.function is not None:
            self.scale = float(found[1])
        else:
            self.linear, self.quadratic = float(found[1]), float(found[2])

    def state_dict(self) -> dict[str, Any]:
        """Coefficients and remembered steps, as plain numbers and lists."""
        return {
            "coefficients": list(self.coefficients),
            "steps": [list(s) for s in self._steps],
            "seen": self._num_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a model with the same settings."""
        self.coefficients = tuple(state["coefficients"])
        self._steps.clear()
        self._steps.extend((x, y, s) for x, y, s in state["steps"])
        self._num_seen = state["seen"]


def _robust_fit(columns: Floats, seconds: Floats) -> Floats | None:
    """Nonnegative least squares, reweighted: Huber's weights, and nothing for what is far off. None if degenerate."""
    size = np.abs(columns).max(axis=0)
    if (size == 0).all():
        return None
    columns = columns / np.where(size > 0, size, 1.0)
    # The start must bear outliers too: seconds over the batch's size, by their median.
    rest = columns[:, 1:].sum(axis=1)
    found = np.array([0.0, *[np.median(seconds / np.maximum(rest, 1e-12))] * (columns.shape[1] - 1)])
    for _ in range(_ROUNDS):
        residuals = seconds - columns @ found
        deviation = max(1.4826 * float(np.median(np.abs(residuals))), 1e-9 * float(np.median(seconds)))
        off = np.abs(residuals) / deviation
        weights = np.where(off > _REJECTED, 0.0, np.minimum(1.0, _HUBER / np.maximum(off, _HUBER)))
        renewed = _nonnegative(columns, seconds, weights)
        if renewed is None:
            break
        if np.allclose(renewed, found, rtol=1e-9, atol=1e-15):
            found = renewed
            break
        found = renewed
    return found / np.where(size > 0, size, 1.0)


def _nonnegative(columns: Floats, seconds: Floats, weights: Floats) -> Floats | None:
    """The least squares among all choices of columns whose coefficients come out 0 or more: at most 7 for 3."""
    root = np.sqrt(weights)
    a, b = columns * root[:, None], seconds * root
    best: tuple[float, Floats] | None = None
    for size in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), size):
            part = a[:, chosen]
            solution, _, rank, _ = np.linalg.lstsq(part, b, rcond=1e-9)
            if rank < size or (solution < 0).any():
                continue
            error = float(((part @ solution - b) ** 2).sum())
            if best is None or error < best[0] * (1 - 1e-12):
                full = np.zeros(columns.shape[1])
                full[list(chosen)] = solution
                best = error, full
    return None if best is None else best[1]
