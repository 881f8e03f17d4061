"""How `InTuneDataModule` balances its training batches: one typed setting, in Python or YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_intune.balance.cost import CostModel
from lightning_intune.config import Schema, check_columns
from lightning_intune.errors import ConfigError

SettableMode = Literal["off", "local", "reservoir", "global", False]  # YAML reads a bare `off` as false
Unit = Literal["impression", "session"]


@dataclass(frozen=True, kw_only=True)
class Balance:  # not marked final: jsonargparse takes no such default, and `--print_config` would show no field
    """Training batches of equal cost, over one rank's steps and over all ranks. Off by default.

    A rank's batch then has `loss_scale`: multiply the sum of its losses by it, or use `balance.mean_loss`.

    Args:
        mode: off; local (each rank spreads what it reads evenly over a window's steps); reservoir (ranks also swap a
            few samples per window); global (every step is divided anew over the ranks, and has the samples that it
            would have without balancing). One rank alone spreads its own, in every mode but off.
        unit: What moves whole between ranks, and what batch_size counts: an impression (a row) or a session.
        session: With unit session, the column that tells rows of one session, which stand side by side; null for
            files of the session layout, one row per session.
        length: The sparse feature whose number of values is a row's length L; null for all of them together. Where it
            is among the dedup groups, a session's repeated rows count once, as the model computes them.
        linear: A row costs linear * L + quadratic * L**2, a session the sum of its rows.
        quadratic: See linear. Attention of width d, and the layers around it, balance at L of about 6 d.
        padded: Whether the model pads, so that a batch costs as if all were as long as its longest; on several ranks
            for mode global with equal_count false.
        fit: Whether linear and quadratic are fitted to measured step times, by InTuneCallback. Which rank computes a
            sample then depends on time, and so does a run's exact course.
        equal_count: Whether all ranks get equally many units in a step. false is for mode global.
        window: Steps that ranks plan together, ahead of need; two windows are held in memory.
        max_cost: On one rank, instead of batch_size: batches of any count within this cost.
        timeout_s: Seconds that a rank waits for the others; validation and checkpoints on one rank count as waiting.

    """

    mode: SettableMode = "off"
    unit: Unit = "impression"
    session: str | None = None
    length: str | None = None
    linear: float = 1.0
    quadratic: float = 0.0
    padded: bool = False
    fit: bool = False
    equal_count: bool = True
    window: int = 8
    max_cost: float | None = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.mode is False:
            object.__setattr__(self, "mode", "off")
        for name, choices in (("mode", get_args(SettableMode)[:4]), ("unit", get_args(Unit))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"Balance: {name}={getattr(self, name)!r} is unknown. Set it to one of {', '.join(choices)}."
                )
        if self.session is not None and self.unit != "session":
            raise ConfigError(
                f"Balance: session='{self.session}' is for unit='session'. Set that too, or leave it out."
            )
        if not self.equal_count and self.mode != "global":
            raise ConfigError("Balance: equal_count=False is for mode='global'. In the others counts are equal.")
        if self.window < 1:
            raise ConfigError(f"Balance: window={self.window} has no step. Set it to 1 or more.")
        if self.max_cost is not None and not 0 < self.max_cost < math.inf:
            raise ConfigError(f"Balance: max_cost={self.max_cost} admits no sample. Set it above 0.")
        if not self.timeout_s > 0:
            raise ConfigError(f"Balance: timeout_s={self.timeout_s} waits for nobody. Set it above 0.")
        self.cost_model()  # its own complaints, now

    @property
    def is_on(self) -> bool:
        """Whether batches are made of units at all: with sessions they are, even in mode off."""
        return self.mode != "off" or self.unit == "session"

    @property
    def unbalanced(self) -> Balance:
        """For other splits: the same units where the files know no others, in order."""
        return Balance(unit="session", length=self.length) if self.unit == "session" and self.session is None else OFF

    def check(self, schema: Schema) -> None:
        """ConfigError unless `schema` has the feature that `length` names, or any to take a length from."""
        features = [feature.name for feature in schema.sparse]
        if not self.is_on:
            return
        if self.length is not None:
            check_columns("Balance: length", [self.length], features)
        elif not features:
            raise ConfigError("Balance: the schema has no sparse feature, so no row has a length. Set mode to off.")

    def cost_model(self) -> CostModel:
        """A model of these costs, new each time. ConfigError for costs that are none."""
        return CostModel(linear=self.linear, quadratic=self.quadratic, padded=self.padded, learns=self.fit)


OFF = Balance()
